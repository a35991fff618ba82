// The program that a Go developer would write for this job: franz-go, net/http with a pool of its own, the whole mapping
// of payload 1, a lookup of URL and headers by organisation and sandbox, commits after acknowledgement. It has neither
// eligibility rules nor lanes, retries, dead letters or signatures.
//
//	reference BOOTSTRAP TOPIC WEBHOOKS CA
//
// WEBHOOKS is a JSON file: {"org/sandbox": {"url": "...", "headers": {"name": "value"}}}.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	inFlight  = 500
	perTenant = 64
	batches   = 4
)

type webhook struct {
	URL     string            `json:"url"`
	Headers map[string]string `json:"headers"`
	permits chan struct{}
}

type execution struct {
	MessageExecutionID *string `json:"messageExecutionID"`
	MessageType        *string `json:"messageType"`
	CampaignID         *string `json:"campaignID"`
	CampaignVersionID  *string `json:"campaignVersionID"`
}

type failure struct {
	Category json.RawMessage `json:"category"`
	Type     json.RawMessage `json:"type"`
	Code     json.RawMessage `json:"code"`
	Reason   json.RawMessage `json:"reason"`
}

type identity struct {
	ID      string `json:"id"`
	Primary *bool  `json:"primary,omitempty"`
}

type sandbox struct {
	ID   *string `json:"id"`
	Name string  `json:"name"`
}

type event struct {
	Header struct {
		ImsOrgID  string  `json:"imsOrgId"`
		RequestID *string `json:"requestId"`
		Sandbox   sandbox `json:"sandbox"`
	} `json:"header"`
	Body struct {
		Entity struct {
			ID          string                `json:"_id"`
			EventType   string                `json:"eventType"`
			IdentityMap map[string][]identity `json:"identityMap"`
			Experience  struct {
				Management struct {
					Execution execution `json:"messageExecution"`
					Profile   struct {
						Channel struct {
							ID string `json:"_id"`
						} `json:"channel"`
					} `json:"messageProfile"`
					Feedback struct {
						Status     string          `json:"feedbackStatus"`
						Failure    *failure        `json:"messageFailure"`
						Exclusion  json.RawMessage `json:"messageExclusion"`
						Offers     json.RawMessage `json:"offers"`
						RetryCount *int64          `json:"retryCount"`
					} `json:"messageDeliveryfeedback"`
				} `json:"customerJourneyManagement"`
			} `json:"_experience"`
		} `json:"xdmEntity"`
	} `json:"body"`
}

type feedback struct {
	RequestID *string   `json:"requestId"`
	ImsOrg    string    `json:"imsOrg"`
	Sandbox   sandbox   `json:"sandbox"`
	Channel   string    `json:"channel"`
	EventType string    `json:"eventType"`
	Execution execution `json:"messageExecution"`
	Delivery  struct {
		Status struct {
			Value string `json:"value"`
		} `json:"feedbackStatus"`
		Offers     json.RawMessage `json:"offers"`
		Exclusion  json.RawMessage `json:"messageExclusion"`
		Failure    *failure        `json:"messageFailure"`
		RetryCount *int64          `json:"retryCount"`
	} `json:"messageDeliveryFeedback"`
	IdentityMap map[string][]identity `json:"identityMap"`
}

func mapped(in *event) *feedback {
	entity := &in.Body.Entity
	management := &entity.Experience.Management
	uri := strings.TrimRight(management.Profile.Channel.ID, "/")
	out := &feedback{
		RequestID: in.Header.RequestID,
		ImsOrg:    in.Header.ImsOrgID,
		Sandbox:   in.Header.Sandbox,
		Channel:   strings.ToLower(uri[strings.LastIndexByte(uri, '/')+1:]),
		EventType: entity.EventType,
		Execution: management.Execution,
	}
	out.Delivery.Status.Value = management.Feedback.Status
	out.Delivery.Offers = management.Feedback.Offers
	out.Delivery.Exclusion = management.Feedback.Exclusion
	out.Delivery.Failure = management.Feedback.Failure
	out.Delivery.RetryCount = management.Feedback.RetryCount
	out.IdentityMap = entity.IdentityMap
	if email, ok := out.IdentityMap["Email"]; ok && out.Channel == "email" {
		out.IdentityMap["email"] = email
		delete(out.IdentityMap, "Email")
	}
	return out
}

func post(client *http.Client, webhooks map[string]*webhook, value []byte) {
	var in event
	if err := json.Unmarshal(value, &in); err != nil {
		log.Fatal(err)
	}
	to := webhooks[in.Header.ImsOrgID+"/"+in.Header.Sandbox.Name]
	if to == nil {
		return
	}
	body, err := json.Marshal(mapped(&in))
	if err != nil {
		log.Fatal(err)
	}
	to.permits <- struct{}{}
	defer func() { <-to.permits }()
	request, err := http.NewRequest(http.MethodPost, to.URL, bytes.NewReader(body))
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("content-type", "application/json")
	request.Header.Set("webhook-id", in.Body.Entity.ID)
	for name, value := range to.Headers {
		request.Header.Set(name, value)
	}
	answer, err := client.Do(request)
	if err != nil {
		log.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, answer.Body)
	_ = answer.Body.Close()
	if answer.StatusCode/100 != 2 {
		log.Fatal(answer.Status)
	}
}

func loaded(path string) map[string]*webhook {
	text, err := os.ReadFile(path)
	if err != nil {
		log.Fatal(err)
	}
	webhooks := map[string]*webhook{}
	if err := json.Unmarshal(text, &webhooks); err != nil {
		log.Fatal(err)
	}
	for _, one := range webhooks {
		one.permits = make(chan struct{}, perTenant)
	}
	return webhooks
}

func pooled(ca string) *http.Client {
	pem, err := os.ReadFile(ca)
	if err != nil {
		log.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		MaxIdleConns:        inFlight,
		MaxIdleConnsPerHost: inFlight,
		TLSClientConfig:     &tls.Config{RootCAs: roots},
		TLSNextProto:        map[string]func(string, *tls.Conn) http.RoundTripper{}, // HTTP/1.1, as the dispatcher
	}}
}

type batch struct {
	records []*kgo.Record
	posted  sync.WaitGroup
}

func main() {
	bootstrap, topic, webhooks, client := os.Args[1], os.Args[2], loaded(os.Args[3]), pooled(os.Args[4])
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	consumer, err := kgo.NewClient(
		kgo.SeedBrokers(bootstrap),
		kgo.ConsumerGroup("go-"+topic),
		kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.DisableAutoCommit(),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer consumer.Close()

	waiting, committed := make(chan *batch, batches), make(chan struct{})
	go func() {
		defer close(committed)
		for one := range waiting {
			one.posted.Wait()
			if err := consumer.CommitRecords(context.Background(), one.records...); err != nil {
				log.Print(err)
			}
		}
	}()
	permits := make(chan struct{}, inFlight)
	for ctx.Err() == nil {
		one := &batch{records: consumer.PollRecords(ctx, 1000).Records()}
		one.posted.Add(len(one.records))
		for _, record := range one.records {
			permits <- struct{}{}
			go func() {
				defer func() { <-permits; one.posted.Done() }()
				post(client, webhooks, record.Value)
			}()
		}
		waiting <- one
	}
	close(waiting)
	<-committed
}
