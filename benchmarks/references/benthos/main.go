// Benthos (MIT; the engine that Bento is a fork of) with its own HTTP client and its own mapping language; see config.yaml.
// Its core has no Kafka input, so there is one here, on franz-go, as in the Go program.
//
//	reference BOOTSTRAP TOPIC WEBHOOKS CA
//
// WEBHOOKS is a JSON file: {"org/sandbox": {"url": "...", "headers": {"name": "value"}}}.
package main

import (
	"context"
	"crypto/tls"
	_ "embed"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	_ "github.com/redpanda-data/benthos/v4/public/components/io"
	_ "github.com/redpanda-data/benthos/v4/public/components/pure"
	"github.com/redpanda-data/benthos/v4/public/service"
	"github.com/twmb/franz-go/pkg/kgo"
)

//go:embed config.yaml
var config string

const (
	idleConnections = 500
	polls           = 4
)

// poll is what one fetch returned. Its offsets are committed once each of its events was acknowledged.
type poll struct {
	records []*kgo.Record
	pending sync.WaitGroup
}

// input reads and commits as the Go program does: polls are committed in the order in which they were read.
type input struct {
	bootstrap, topic string
	consumer         *kgo.Client
	of               *poll
	rest             []*kgo.Record
	waiting          chan *poll
}

func (in *input) Connect(context.Context) error {
	consumer, err := kgo.NewClient(
		kgo.SeedBrokers(in.bootstrap),
		kgo.ConsumerGroup("benthos-"+in.topic),
		kgo.ConsumeTopics(in.topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.DisableAutoCommit(),
	)
	if err != nil {
		return err
	}
	in.consumer, in.waiting = consumer, make(chan *poll, polls)
	go func() {
		for one := range in.waiting {
			one.pending.Wait()
			if err := consumer.CommitRecords(context.Background(), one.records...); err != nil {
				log.Print(err)
			}
		}
	}()
	return nil
}

func (in *input) Read(ctx context.Context) (*service.Message, service.AckFunc, error) {
	for len(in.rest) == 0 {
		records := in.consumer.PollRecords(ctx, 1000).Records()
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		of := &poll{records: records}
		of.pending.Add(len(records))
		select {
		case in.waiting <- of:
			in.of, in.rest = of, records
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
	record, of := in.rest[0], in.of
	in.rest = in.rest[1:]
	return service.NewMessage(record.Value), func(context.Context, error) error {
		of.pending.Done()
		return nil
	}, nil
}

func (in *input) Close(context.Context) error {
	if in.consumer != nil {
		in.consumer.Close()
	}
	return nil
}

// franz makes the input. Benthos itself tries again what was not delivered, and acknowledges it only then.
func franz(conf *service.ParsedConfig, _ *service.Resources) (service.Input, error) {
	bootstrap, err := conf.FieldString("bootstrap_servers")
	if err != nil {
		return nil, err
	}
	topic, err := conf.FieldString("topic")
	if err != nil {
		return nil, err
	}
	return service.AutoRetryNacks(&input{bootstrap: bootstrap, topic: topic}), nil
}

func main() {
	webhooks, err := os.ReadFile(os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	variables := map[string]string{
		"BOOTSTRAP": os.Args[1],
		"TOPIC":     os.Args[2],
		"WEBHOOKS":  strings.ReplaceAll(string(webhooks), "\n", " "), // in the mapping JSON is a literal
		"CA":        os.Args[4],
	}
	// The HTTP client clones this one. As downloaded it would keep two idle connections a host.
	pool := http.DefaultTransport.(*http.Transport)
	pool.MaxIdleConns, pool.MaxIdleConnsPerHost = idleConnections, idleConnections
	pool.ForceAttemptHTTP2 = false // HTTP/1.1, as the dispatcher
	pool.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}

	fields := service.NewConfigSpec().Fields(
		service.NewStringField("bootstrap_servers"),
		service.NewStringField("topic"),
	)
	if err = service.RegisterInput("franz", fields, franz); err != nil {
		log.Fatal(err)
	}
	builder := service.NewStreamBuilder()
	builder.SetEnvVarLookupFunc(func(name string) (string, bool) {
		value, ok := variables[name]
		return value, ok
	})
	if err = builder.SetYAML(config); err != nil {
		log.Fatal(err)
	}
	stream, err := builder.Build()
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := stream.Run(ctx); err != nil && ctx.Err() == nil {
		log.Fatal(err)
	}
}
