package events

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const toUpdateNACK = "run UPDATE_NACK=1 go test ./internal/events -run TestNACK"

// TestNACK holds the streams and consumers of the Helm chart, resources of the NATS JetStream controller, against those that the service makes: the
// chart's own file with VCENTER for a vCenter's name, and what its tests want to be made of it with other settings.
func TestNACK(t *testing.T) {
	for file, s := range map[string]Streams{
		"deploy/helm/files/streams.yaml": {
			Replicas: 1, EventsMaxAge: 720 * time.Hour, DeadlettersMaxAge: 168 * time.Hour, QueuePerVM: 2, AckWait: 30 * time.Second,
			MaxInFlight: map[string]int{"VCENTER": 64},
		},
		"tools/helm/testdata/nack.yaml": {
			Replicas: 3, EventsMaxAge: 1440 * time.Hour, EventsMaxBytes: 10 << 30, DeadlettersMaxAge: 336 * time.Hour, QueuePerVM: 4, AckWait: 20 * time.Second,
			MaxInFlight: map[string]int{"lab": 128, "eu-prod": 64},
		},
	} {
		file, want := filepath.Join("../..", file), asNACK(s)
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
			t.Errorf("%s is not what the service makes: %s", file, toUpdateNACK)
		}
	}
}

// asNACK writes the streams and consumers in the fields of jetstream.nats.io/v1beta2, those of no vCenter first.
func asNACK(s Streams) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Generated from internal/events/streams.go: %s\nstreams:\n", toUpdateNACK)
	var vcenters []string
	for v := range s.MaxInFlight {
		vcenters = append(vcenters, v)
	}
	needs := s.streams(vcenters)
	for _, n := range needs[:2] {
		nackStream(&b, n.StreamConfig)
	}
	fmt.Fprint(&b, "requests:\n")
	for _, n := range needs[2:] {
		nackStream(&b, n.StreamConfig)
	}
	fmt.Fprint(&b, "consumers:\n")
	for _, v := range vcenters {
		for _, c := range s.consumers(v) {
			fmt.Fprintf(&b, "  - durableName: %s\n    streamName: %s\n    filterSubject: %s\n", c.Durable, RequestsStream(v), c.FilterSubject)
			fmt.Fprintf(&b, "    deliverPolicy: %s\n    ackPolicy: %s\n    replayPolicy: %s\n", c.DeliverPolicy, c.AckPolicy, c.ReplayPolicy)
			fmt.Fprintf(&b, "    ackWait: %s\n    maxDeliver: %d\n    maxAckPending: %d\n", duration(c.AckWait), c.MaxDeliver, c.MaxAckPending)
		}
	}
	return b.Bytes()
}
