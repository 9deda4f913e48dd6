package federation

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
)

// Rules that drivers keep, or that are left out by what a machine is told: the
// machine itself has no word of it.
const (
	ruleRepost     rule = 1 << (63 - iota) // modules post again what servers hide
	ruleHeirs                              // heirs of more than half of their servers sign an era: a machine is told that all did
	ruleFreeze                             // nothing is sent on what is not final where a room freezes: a machine is told that it does not
	rulesOfDrivers = ruleRepost | ruleHeirs | ruleFreeze
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
	{"repost", ruleRepost, func(f *simFaults) { f.softFail = true }},
	{"heirs-majority", ruleHeirs, func(f *simFaults) { f.heirs = true }},
	{"freeze", ruleFreeze, func(f *simFaults) { parted(f); f.freeze = true }},
}

// parted makes a run with several sequencers that do not always hear each other.
func parted(f *simFaults) { f.split, f.loss, f.n = true, true, max(3, f.n) }

// combined mutations must break finality itself: without the re-accept liveness
// is gone already.
var combined = map[string]bool{"promised-value": true, "deepest-tie": true}

func scriptOfRule(name string) string { return filepath.Join("simdata", "rule-"+name+".txt") }

// breaksWithout reads from a script's first line which property breaks without its
// rule, and, where that is a panic, which shows no property, from a line of its own
// what it is good for.
func breaksWithout(text, name string) (property, panics string) {
	for _, line := range strings.Split(text, "\n") {
		if what, ok := strings.CutPrefix(line, "# Without the rule "+name+": "); ok && property == "" {
			property, _, _ = strings.Cut(what, ": ")
		}
		if why, ok := strings.CutPrefix(line, panicReason); ok {
			panics = why
		}
	}
	return property, panics
}

const panicReason = "# The panic is what is wanted: "

// TestRulesMatter leaves out one rule after the other: the property must break that
// its script names.
func TestRulesMatter(t *testing.T) {
	for _, mut := range mutations {
		t.Run(mut.name, func(t *testing.T) {
			if *simSearch > 0 && (*simRule == "" || *simRule == mut.name) {
				search(t, mut.name, mut.rule, mut.want)
			}
			text, err := os.ReadFile(scriptOfRule(mut.name))
			if err != nil {
				t.Fatal(err)
			}
			want, why := breaksWithout(string(text), mut.name)
			err = newSim(readScript(t, scriptOfRule(mut.name)), mut.rule).run()
			var v *violation
			switch {
			case !errors.As(err, &v):
				t.Errorf("without the rule %s nothing breaks", mut.name)
			case want == "":
				t.Errorf("the script does not say which property breaks without the rule %s: %v does", mut.name, v)
			case v.property != want:
				t.Errorf("without the rule %s breaks %v, want a violation of %s", mut.name, v, want)
			case want == "no panic" && why == "":
				t.Errorf("without the rule %s there is a panic, and no property breaks: %v", mut.name, v)
			}
			t.Log(err)
		})
	}
}

// search looks for a seed that breaks a property without a rule and none with
// it, shrinks it and keeps it.
func search(t *testing.T, name string, without rule, want func(*simFaults)) {
	old, _ := os.ReadFile(scriptOfRule(name))
	_, panics := breaksWithout(string(old), name)
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
		if !errors.As(newSim(sc, without).run(), &v) || combined[name] && v.property != "2 finality" || v.property == "no panic" && panics == "" {
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
		text := fmt.Sprintf("# Without the rule %s: %v\n", name, v)
		if v.property == "no panic" {
			text += panicReason + panics + "\n"
		}
		text += sc.String()
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
