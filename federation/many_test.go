package federation

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestManyCommitAtOnce: of 2 to 64 users who commit on one epoch at once, and who do
// so again until they are in, one gets in after the other, each before anybody a second
// time; three modules and a member, who hear of the commits in orders of their own,
// have one head in each epoch, and it becomes final.
func TestManyCommitAtOnce(t *testing.T) {
	const epochs = 10 // the rest is the same again
	for _, n := range []int{2, 3, 8, 33, 64} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			w, rng := newWorld(), rand.New(rand.NewPCG(uint64(n), 20))
			list, users := []string{"s1", "s2", "s3"}, make([]string, n)
			for i := range users {
				users[i] = fmt.Sprintf("u%02d", i)
			}
			nodes := append([]string{""}, list...)
			p := newPeers(t, w, w.base(list, users[:1], users), nodes...)
			head, in := "root", map[string]bool{}
			for epoch := 1; epoch <= min(n, epochs); epoch++ {
				var commits []*Commit
				for _, u := range users {
					if !in[u] {
						commits = append(commits, w.commit(fmt.Sprintf("%s on %s", u, head), head, u, commitSpec{}))
					}
				}
				for _, node := range nodes {
					for _, i := range rng.Perm(len(commits)) {
						if _, err := p.ms[node].Step(commits[i]); err != nil {
							t.Fatalf("epoch %d: %v", epoch, err)
						}
					}
				}
				p.run(1, list...)
				accepted, _ := p.ms[""].Known(p.ms[""].Head())
				if accepted.Epoch != uint64(epoch) || in[accepted.AuthorUser] {
					t.Fatalf("epoch %d: the head is %s, of epoch %d", epoch, w.name(accepted.Ref), accepted.Epoch)
				}
				head, in[accepted.AuthorUser] = w.name(accepted.Ref), true
				for _, u := range users {
					if u != accepted.AuthorUser {
						p.step(w.applied(head, u))
						break
					}
				}
				p.run(10, list...)
				for _, node := range nodes {
					if m := p.ms[node]; m.Head() != testRef(head) || m.NewestFinal() != testRef(head) {
						t.Fatalf("epoch %d: %q has head %s and final %s, the others head %s", epoch, node, w.name(m.Head()), w.name(m.NewestFinal()), head)
					}
				}
			}
			if want := min(n, epochs); len(in) != want {
				t.Errorf("%d of %d users are in after %d epochs", len(in), n, want)
			}
		})
	}
}
