package e2e_test

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/internal/faults"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestFault makes happen to whole installations what takes long.
func TestFault(t *testing.T) {
	faults.Run(t, "e2e", map[string]func(t *testing.T){
		"F13-module-away":          faultModuleAway,
		"F14-partition-of-servers": faultPartitionOfServers,
		"F24-little-memory":        faultLittleMemory,
	})
}

// faultModuleAway: the module is away while 10,000 events of ours come into a room of a real Synapse, which keeps them
// for it. MLS_FAULT_EVENTS is another number.
func faultModuleAway(t *testing.T) {
	n := 10_000
	if v := os.Getenv("MLS_FAULT_EVENTS"); v != "" {
		var err error
		if n, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
	}
	s := tell(t, "sqlite")
	alice, bob, carol := s.person("syn1", "alice"), s.person("den1", "bob"), s.person("syn1", "carol")
	room := s.room(client.CreateOptions{}, alice, bob)
	s.talk(room, "before", alice, bob)
	s.must(s.w.Kill(s.ctx, s.w.Module("syn1").Name))
	away := time.Now()
	work := make(chan int)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range work {
				path := fmt.Sprintf("/rooms/%s/send/%s/fault%d", url.PathEscape(string(room)), rooms.TypeReceipt, i)
				if _, err := e2e.API(s.ctx, alice.Server, alice.User, http.MethodPut, path, map[string]int{"n": i}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range n {
		work <- i
	}
	close(work)
	wg.Wait()
	s.must(alice.Invite(s.soon(), room, carol.UserID())) // its commit is behind them all
	sending := time.Since(away)
	back := time.Now()
	s.must(s.w.StartModule(s.soon(), "syn1"))
	s.join(carol, room, alice)
	s.talk(room, "the module is back", alice, bob, carol)
	took := time.Since(back)
	metrics, err := s.w.Metrics(s.ctx, "syn1")
	s.must(err)
	value := func(name string) (sum float64) {
		for line := range strings.Lines(metrics) {
			if rest, ok := strings.CutPrefix(line, name); ok && (rest[0] == ' ' || rest[0] == '{') {
				v, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' ')+1:len(rest)-1]), 64)
				s.must(err)
				sum += v
			}
		}
		return sum
	}
	memory := value("process_resident_memory_bytes")
	t.Logf("figures: away for %v and %d events; a newcomer talked %v after the start; the module takes %.0f MiB", sending.Round(time.Second), n, took.Round(time.Second), memory/(1<<20))
	t.Logf("figures: they came in %.0f transactions, whose answers took %.1f s in all; the engine worked for %.1f s; the module took %.1f s of the processors",
		value("mls_transactions_total"), value("mls_transaction_seconds_sum"), value("mls_engine_step_seconds_sum"), value("process_cpu_seconds_total"))
	if took > 2*time.Minute {
		t.Errorf("it took %v, want 2 minutes at the most", took)
	}
	if memory == 0 || memory > 256<<20 {
		t.Errorf("the module takes %.0f bytes", memory)
	}
	s.agree(room, alice, bob, carol)
}
