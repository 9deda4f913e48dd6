package federation

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
)

// mutations are the rules that safety or liveness rests on. Each has a script in
// simdata that breaks a property without the rule and none with it. What
// the search should contain is given where few seeds would show it.
var mutations = []struct {
	name string
	rule rule
	want func(f *simFaults)
}{
	// A new owner accepts its head again, and counts only promises whose votes it
	// can follow: that alone keeps it on what was voted for. The rule carries the
	// weight where the head is elsewhere, so it is tried without the re-accept.
	{"promised-value", rulePromisedValue | ruleReaccept, parted},
	{"highest-promised", ruleHighestPromised, parted},
	{"persist-before-send", rulePersist, func(f *simFaults) { f.crash = true }},
	{"list-only-once-final", ruleListFinal, func(f *simFaults) { f.listChange = true }},
	{"re-accept", ruleReaccept, nil},
	{"applied", ruleApplied, func(f *simFaults) { f.badMember = true }},
	{"since-parent", ruleSinceParent, func(f *simFaults) { f.badMember = true }},
	{"not-the-author", ruleNotAuthor, func(f *simFaults) { f.badMember = true }},
	{"era-vouched", ruleEraVouched, func(f *simFaults) { f.eras = true }},
	{"ballot-before-provisional", ruleBallotFirst, nil},
	{"quorum-of-promises", ruleQuorumPromises, parted},
	{"quorum-of-votes", ruleVoteQuorum, parted},
	{"takeover", ruleTakeover, nil},
	{"window", ruleWindow, nil},
	{"list-stop", ruleListStop, func(f *simFaults) { f.listChange = true }},
	{"era-first", ruleEraFirst, func(f *simFaults) { f.eras = true }},
	{"final-first", ruleFinalFirst, parted},
	{"provisional", ruleProvisional, parted},
	{"pinned-promises", rulePinnedPromises, parted},
	{"extend-vote", ruleExtendVote, func(f *simFaults) { parted(f); f.liar = true }},
	{"ballot-base", ruleBallotBase, func(f *simFaults) { parted(f); f.listChange = true }},
	{"chain-cover", ruleChainCover, nil},
	{"cut-doubt", ruleCutDoubt, func(f *simFaults) { f.badMember = true }},
	{"era-admin-final", ruleEraAdminFinal, func(f *simFaults) { parted(f); f.eras = true }},
	{"deepest-tie", ruleDeepestTie | ruleReaccept, parted},
	{"ask-twice", ruleAskTwice, func(f *simFaults) { f.oldBackup, f.crash = true, true }},
}

// parted makes a run with several sequencers that do not always hear each other.
func parted(f *simFaults) { f.split, f.loss, f.n = true, true, max(3, f.n) }

// combined mutations must break finality itself: without the re-accept liveness
// is gone already.
var combined = map[string]bool{"promised-value": true, "deepest-tie": true}

func scriptOfRule(name string) string { return filepath.Join("simdata", "rule-"+name+".txt") }

// TestRulesMatter leaves out one rule after the other: a property must break.
func TestRulesMatter(t *testing.T) {
	for _, mut := range mutations {
		t.Run(mut.name, func(t *testing.T) {
			if *simSearch > 0 && (*simRule == "" || *simRule == mut.name) {
				search(t, mut.name, mut.rule, mut.want)
			}
			err := newSim(readScript(t, scriptOfRule(mut.name)), mut.rule).run()
			if err == nil {
				t.Errorf("without the rule %s nothing breaks", mut.name)
			}
			t.Log(err)
		})
	}
}

// search looks for a seed that breaks a property without a rule and none with
// it, shrinks it and keeps it.
func search(t *testing.T, name string, without rule, want func(*simFaults)) {
	for seed := int64(1); seed <= int64(*simSearch); seed++ {
		sc := simScriptOf(seed, *simCount)
		if want != nil && seed%4 > 0 {
			want(&sc.faults)
			if sc.faults.liar {
				sc.faults.n = max(3, sc.faults.n)
				sc.faults.badMember, sc.faults.swapServer = false, false
			}
			sc.faults.shortKeep = sc.faults.shortKeep && !sc.faults.eras && !sc.faults.heirs
			sc.faults.liar = sc.faults.liar && !sc.faults.badMember
			sc.faults.swapServer = sc.faults.swapServer && !sc.faults.badMember
			sc.steps = simSteps(newSimRand(uint64(seed)), sc.faults, *simCount)
		}
		var v *violation
		if !errors.As(newSim(sc, without).run(), &v) || combined[name] && v.property != "2 finality" {
			continue
		}
		if newSim(sc, 0).run() != nil {
			t.Errorf("seed %d breaks with all rules in force", seed)
			continue
		}
		sc = shrink(sc, without, v.property)
		if newSim(sc, 0).run() != nil {
			continue
		}
		errors.As(newSim(sc, without).run(), &v)
		text := fmt.Sprintf("# Without the rule %s: %v\n%s", name, v, sc)
		if err := os.WriteFile(scriptOfRule(name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Logf("seed %d", seed)
		if *simRecord {
			record(t, "| rule left out | property that breaks | seeds until then | steps left | when |",
				fmt.Sprintf("| %s | %s | %d | %d | %s |", name, v.property, seed, len(sc.steps), time.Now().UTC().Format("2006-01-02")))
		}
		return
	}
	t.Errorf("rule %s: nothing broke in %d seeds", name, *simSearch)
}

// TestRulesMatterInStories tells stories without a rule: what the machine does
// must differ. These rules rarely show in chance runs, because another rule
// catches what they let through.
func TestRulesMatterInStories(t *testing.T) {
	for _, tt := range []struct {
		story string
		rule  rule
	}{
		{"lost_accept", ruleChainCover},
		{"promises", rulePromisedValue},
		{"ties", ruleDeepestTie},
		{"doubt", ruleCutDoubt},
		{"doubt", ruleNextRound},
		{"era", ruleEraFirst},
		{"era", ruleEraVouched},
		{"era_demoted", ruleEraAdminFinal},
		{"three", ruleQuorumPromises},
		{"three", ruleVoteQuorum},
		{"list_change", ruleListStop},
		{"list_change", ruleListFinal},
		{"equivocation", ruleEquivocatorLast},
		{"preference", ruleBallotFirst},
		{"vouching", ruleSinceParent},
		{"vouching", ruleNotAuthor},
		{"oldest_user", ruleOldestUser},
		{"final_first", ruleFinalFirst},
		{"extend_vote", ruleExtendVote},
		{"understated", ruleBallotBase},
	} {
		t.Run(fmt.Sprintf("%s/%d", tt.story, bits.TrailingZeros64(uint64(tt.rule))), func(t *testing.T) {
			s, differs := &story{without: tt.rule}, 0
			datadriven.RunTest(t, filepath.Join("testdata", tt.story+".txt"), func(t *testing.T, d *datadriven.TestData) (out string) {
				out = d.Expected
				defer func() {
					if recover() != nil { // another rule catches it, loudly
						differs++
						s.m, _ = New(testConfig(""), newWorld().base([]string{"hub"}, nil, []string{"alice"}))
					}
				}()
				if differs == 0 && s.run(t, d) != d.Expected {
					differs++
				}
				return d.Expected
			})
			if differs == 0 {
				t.Error("the story is the same without the rule")
			}
		})
	}
}
