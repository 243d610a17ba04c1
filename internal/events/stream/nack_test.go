package stream

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/guestflow/guestflow/internal/events"
)

// nackStream is a stream in the fields of the NATS JetStream controller's resource, jetstream.nats.io/v1beta2.
type nackStream struct {
	Name              string                    `json:"name"`
	Description       string                    `json:"description"`
	Subjects          []string                  `json:"subjects"`
	Retention         jetstream.RetentionPolicy `json:"retention"`
	Storage           jetstream.StorageType     `json:"storage"`
	Replicas          int                       `json:"replicas"`
	MaxAge            string                    `json:"maxAge,omitempty"`
	MaxBytes          int64                     `json:"maxBytes"`
	MaxMsgs           int64                     `json:"maxMsgs"`
	MaxMsgsPerSubject int64                     `json:"maxMsgsPerSubject"`
	MaxMsgSize        int32                     `json:"maxMsgSize"`
	MaxConsumers      int                       `json:"maxConsumers"`
	Discard           jetstream.DiscardPolicy   `json:"discard"`
	DiscardPerSubject bool                      `json:"discardPerSubject"`
	DuplicateWindow   string                    `json:"duplicateWindow"`
	AllowDirect       bool                      `json:"allowDirect"`
}

// nackConsumer is a consumer in such fields.
type nackConsumer struct {
	DurableName   string                  `json:"durableName"`
	StreamName    string                  `json:"streamName"`
	FilterSubject string                  `json:"filterSubject"`
	DeliverPolicy jetstream.DeliverPolicy `json:"deliverPolicy"`
	AckPolicy     jetstream.AckPolicy     `json:"ackPolicy"`
	ReplayPolicy  jetstream.ReplayPolicy  `json:"replayPolicy"`
	AckWait       string                  `json:"ackWait"`
	MaxDeliver    int                     `json:"maxDeliver"`
	MaxAckPending int                     `json:"maxAckPending"`
}

// nack are all of them: the streams of all vCenters, and those of each.
type nack struct {
	Streams   []nackStream   `json:"streams"`
	Requests  []nackStream   `json:"requests"`
	Consumers []nackConsumer `json:"consumers"`
}

// TestNACK holds the resources of the Helm chart against what the service makes: the chart's own file, with VCENTER for
// a vCenter's name, and what the chart's tests want to be made of that with other settings. UPDATE_NACK=1 writes both
// anew.
func TestNACK(t *testing.T) {
	for file, s := range map[string]Settings{
		"deploy/helm/files/streams.json": {
			Replicas: 1, EventsMaxAge: 720 * time.Hour, DeadlettersMaxAge: 168 * time.Hour,
			DeadlettersMaxBytes: 256 << 20, QueuePerVM: 2, AckWait: 30 * time.Second,
			MaxInFlight: map[string]int{"VCENTER": 64},
		},
		"deploy/helm/tests/testdata/nack.json": {
			Replicas: 3, EventsMaxAge: 1440 * time.Hour, EventsMaxBytes: 10 << 30, DeadlettersMaxAge: 336 * time.Hour,
			DeadlettersMaxBytes: 1 << 30, QueuePerVM: 4, AckWait: 20 * time.Second,
			MaxInFlight: map[string]int{"lab": 128, "eu-prod": 64},
		},
	} {
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false) // subjects end in ">"
		enc.SetIndent("", "  ")
		if err := enc.Encode(asNACK(s)); err != nil {
			t.Fatal(err)
		}
		want := b.Bytes()
		file := filepath.Join("../../..", file)
		if os.Getenv("UPDATE_NACK") != "" {
			if err := os.WriteFile(file, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		have, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(have, want) {
			t.Errorf("%s is not what the service makes: run UPDATE_NACK=1 go test ./internal/events/stream -run "+
				"TestNACK, and the chart's tests", file)
		}
	}
}

func asNACK(s Settings) (all nack) {
	vcenters := slices.Sorted(maps.Keys(s.MaxInFlight))
	for _, n := range s.streams(vcenters) {
		stream := nackStream{
			Name: n.Name, Description: n.Description, Subjects: n.Subjects, Retention: n.Retention, Storage: n.Storage,
			Replicas: n.Replicas,
			MaxBytes: n.MaxBytes, MaxMsgs: n.MaxMsgs, MaxMsgsPerSubject: n.MaxMsgsPerSubject, MaxMsgSize: n.MaxMsgSize,
			MaxConsumers: n.MaxConsumers,
			Discard:      n.Discard, DiscardPerSubject: n.DiscardNewPerSubject, DuplicateWindow: n.Duplicates.String(),
			AllowDirect: n.AllowDirect,
		}
		if n.Retention == jetstream.WorkQueuePolicy {
			all.Requests = append(all.Requests, stream)
			continue
		}
		stream.MaxAge = n.MaxAge.String()
		all.Streams = append(all.Streams, stream)
	}
	for _, v := range vcenters {
		for _, c := range s.consumers(v) {
			all.Consumers = append(all.Consumers, nackConsumer{
				DurableName: c.Durable, StreamName: events.RequestsStream(v), FilterSubject: c.FilterSubject,
				DeliverPolicy: c.DeliverPolicy, AckPolicy: c.AckPolicy,
				ReplayPolicy: c.ReplayPolicy, AckWait: c.AckWait.String(), MaxDeliver: c.MaxDeliver,
				MaxAckPending: c.MaxAckPending,
			})
		}
	}
	return all
}
