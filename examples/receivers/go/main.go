// A webhook receiver: verifies signature and JWT, drops repeats, answers quickly. Needs only the standard library.
//
//	CERT=cert.pem KEY=key.pem SECRET=whsec_… JWKS=jwks.json AUDIENCE=https://hooks.luma.example go run .
//
// SECRET or JWKS may be left out if the webhook has no signing secret or no JWT authentication.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"math/big"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	maxBody   = 1 << 20
	maxSeen   = 100_000
	tolerance = 300.0 // seconds
)

type receiver struct {
	secret   []byte
	keys     map[string]*ecdsa.PublicKey
	audience string
	issuer   string

	mutex sync.Mutex
	seen  map[string]bool // in production: a table with a unique key, shared by all processes
	order []string
}

func (r *receiver) checkSignature(header http.Header, body []byte) error {
	id, timestamp := header.Get("webhook-id"), header.Get("webhook-timestamp")
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if id == "" || err != nil {
		return errors.New("webhook-id or webhook-timestamp is missing")
	}
	if math.Abs(time.Since(time.Unix(seconds, 0)).Seconds()) > tolerance {
		return errors.New("the timestamp is too old or too new")
	}
	mac := hmac.New(sha256.New, r.secret)
	fmt.Fprintf(mac, "%s.%s.", id, timestamp)
	mac.Write(body)
	expected := mac.Sum(nil)
	// During a rotation there are several signatures; one that fits is enough.
	for _, signature := range strings.Fields(header.Get("webhook-signature")) {
		version, value, _ := strings.Cut(signature, ",")
		given, err := base64.StdEncoding.DecodeString(value)
		if version == "v1" && err == nil && hmac.Equal(given, expected) {
			return nil
		}
	}
	return errors.New("no signature fits")
}

func (r *receiver) checkToken(header http.Header) error {
	token, isBearer := strings.CutPrefix(header.Get("authorization"), "Bearer ")
	parts := strings.Split(token, ".")
	if !isBearer || len(parts) != 3 {
		return errors.New("no bearer token")
	}
	var head struct{ Alg, Kid string }
	var claims struct {
		Iss      string          `json:"iss"`
		Aud      json.RawMessage `json:"aud"`
		Iat, Exp float64
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil || decode(parts[0], &head) != nil || decode(parts[1], &claims) != nil {
		return errors.New("the token is not a JWT")
	}
	key := r.keys[head.Kid]
	if key == nil || head.Alg != "ES256" || len(signature) != 64 {
		return errors.New("unknown key or algorithm")
	}
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if !ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])) {
		return errors.New("the token's signature is wrong")
	}
	now := float64(time.Now().Unix())
	if claims.Exp <= now-10 || claims.Iat > now+10 {
		return errors.New("the token is expired or from the future")
	}
	if claims.Iss != r.issuer || !r.isAudience(claims.Aud) {
		return errors.New("the token is for another receiver")
	}
	return nil
}

func (r *receiver) isAudience(raw json.RawMessage) bool {
	var one string
	var many []string
	if json.Unmarshal(raw, &one) == nil {
		many = []string{one}
	} else if json.Unmarshal(raw, &many) != nil {
		return false
	}
	for _, audience := range many {
		if audience == r.audience {
			return true
		}
	}
	return false
}

func (r *receiver) isNew(id string) bool {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.seen[id] {
		return false
	}
	r.seen[id] = true
	r.order = append(r.order, id)
	if len(r.order) > maxSeen {
		delete(r.seen, r.order[0])
		r.order = r.order[1:]
	}
	return true
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, request.Body, maxBody))
	if err != nil {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		return
	}
	if r.secret != nil {
		err = r.checkSignature(request.Header, body)
	}
	if err == nil && r.keys != nil {
		err = r.checkToken(request.Header)
	}
	if err != nil {
		fmt.Println("refused:", err)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	var event struct {
		Channel                 string
		MessageDeliveryFeedback struct {
			FeedbackStatus struct{ Value string }
		}
	}
	if json.Unmarshal(body, &event) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	id := request.Header.Get("webhook-id")
	if r.isNew(id) {
		fmt.Println("event", id, event.Channel, event.MessageDeliveryFeedback.FeedbackStatus.Value) // in production: put it into a queue
	} else {
		fmt.Println("repeat", id)
	}
	w.WriteHeader(http.StatusNoContent)
}

func decode(part string, into any) error {
	data, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

func readKeys(path string) map[string]*ecdsa.PublicKey {
	data, err := os.ReadFile(path)
	if err != nil {
		log.Fatal(err)
	}
	var document struct {
		Keys []struct{ Kty, Crv, Kid, X, Y string }
	}
	if err := json.Unmarshal(data, &document); err != nil {
		log.Fatal(err)
	}
	keys := map[string]*ecdsa.PublicKey{}
	for _, key := range document.Keys {
		x, errX := base64.RawURLEncoding.DecodeString(key.X)
		y, errY := base64.RawURLEncoding.DecodeString(key.Y)
		if key.Kty == "EC" && key.Crv == "P-256" && errX == nil && errY == nil {
			keys[key.Kid] = &ecdsa.PublicKey{Curve: elliptic.P256(), X: new(big.Int).SetBytes(x), Y: new(big.Int).SetBytes(y)}
		}
	}
	return keys
}

func setting(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func main() {
	r := &receiver{seen: map[string]bool{}, audience: os.Getenv("AUDIENCE"), issuer: setting("ISSUER", "feedback-dispatcher")}
	if secret := os.Getenv("SECRET"); secret != "" {
		key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
		if err != nil {
			log.Fatal("SECRET: ", err)
		}
		r.secret = key
	}
	if path := os.Getenv("JWKS"); path != "" {
		r.keys = readKeys(path)
	}
	server := &http.Server{Addr: "127.0.0.1:" + setting("PORT", "8443"), Handler: r, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second}
	fmt.Println("ready")
	log.Fatal(server.ListenAndServeTLS(os.Getenv("CERT"), os.Getenv("KEY")))
}
