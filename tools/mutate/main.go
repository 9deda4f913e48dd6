// Mutate removes each validation of a package in turn and tells which ones no test misses.
//
//	mutate [-sample 10 -seed COMMIT] [-list] [-only EXPRESSION] ./mls
//
// A validation is a condition whose body ends in a refusal: a call of invalid or fail, an error made there, or one of
// the package's own (ErrName); or such a refusal that no condition stands before; or an if that hands on the error of a
// check. Of conditions joined by || each is a validation of its own. All mutants are compiled into one test binary, in
// which an environment variable chooses the one to be active, so that building it costs as much as building the tests
// once. One run of that without any mutation tells which tests each validation refuses something in: only those can
// notice that it is gone, and each mutant meets them, the quickest first, until one fails.
//
// It fails if a mutant survives that is not in the list of equivalent mutants (equivalent.txt), or if that list names
// one that does not survive or, when all are tried, one that is gone.
package main

import (
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

func main() {
	sample := flag.Int("sample", 1, "try one mutant of this many")
	seed := flag.String("seed", "", "chooses the sample, such as a commit's hash")
	list := flag.Bool("list", false, "list the mutants and stop")
	only := flag.String("only", "", "try only mutants whose description matches this expression")
	workers := flag.Int("p", runtime.NumCPU(), "how many to try at a time")
	equivalents := flag.String("equivalent", "tools/mutate/equivalent.txt", "the list of mutants that change nothing")
	flag.Parse()
	if flag.NArg() != 1 || *sample < 1 {
		fmt.Fprintln(os.Stderr, "mutate: name one package's folder\nhint: mutate -sample 10 -seed $(git rev-parse HEAD) ./mls")
		os.Exit(2)
	}
	if err := run(flag.Arg(0), *sample, *seed, *list, *only, *equivalents, *workers); err != nil {
		fmt.Fprintf(os.Stderr, "mutate: %v\n", err)
		os.Exit(1)
	}
}

func run(folder string, sample int, seed string, list bool, only, equivalents string, workers int) error {
	all, files, err := findMutants(folder)
	if err != nil {
		return err
	}
	same, err := readEquivalents(equivalents)
	if err != nil {
		return err
	}
	for key := range same {
		if sample == 1 && !list && !slices.ContainsFunc(all, func(m *mutant) bool { return m.key() == key }) {
			return fmt.Errorf("%s names a mutant that is gone: %s", equivalents, key)
		}
	}
	match, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	var chosen []*mutant
	for _, m := range all {
		if inSample(m, sample, seed) && match.MatchString(m.String()) {
			chosen = append(chosen, m)
		}
	}
	if list {
		for _, m := range chosen {
			fmt.Println(m)
		}
		return nil
	}
	tmp, err := os.MkdirTemp("", "mutate-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	began := time.Now()
	t, err := newTester(folder, tmp, files)
	if err != nil {
		return err
	}
	fmt.Printf("%d of %d validations to remove; the tests were built and run in %.0f s\n", len(chosen), len(all), time.Since(began).Seconds())
	survivors, wrong := t.all(chosen, same, workers)
	noticed := len(chosen) - len(survivors)
	fmt.Printf("%d validations removed, %d noticed, %d equivalent, %d survive, %.0f s\n",
		len(chosen), noticed, len(survivors)-wrong, wrong, time.Since(began).Seconds())
	if wrong > 0 {
		return errors.New("add tests that notice the survivors, or give the reason in " + equivalents + " why nothing can")
	}
	return nil
}

// inSample chooses a share of the mutants by hash, so that it does not depend on what else is in the package.
func inSample(m *mutant, sample int, seed string) bool {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s\x00%s", seed, m.key())
	return h.Sum64()%uint64(sample) == 0
}

// readEquivalents reads the list: the keys of mutants, each followed by a line with the reason.
func readEquivalents(name string) (map[string]string, error) {
	raw, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	var keys []string
	for i, line := range strings.Split(string(raw), "\n") {
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case !strings.HasPrefix(line, "\t"):
			keys = append(keys, line)
		case len(keys) == 0:
			return nil, fmt.Errorf("%s:%d: a reason without its mutants", name, i+1)
		default:
			for _, key := range keys {
				if out[key] != "" {
					return nil, fmt.Errorf("%s:%d: given twice: %s", name, i+1, key)
				}
				out[key] = strings.TrimSpace(line)
			}
			keys = nil
		}
	}
	if len(keys) > 0 {
		return nil, fmt.Errorf("%s: the last mutant has no reason", name)
	}
	return out, nil
}

// all tries mutants and prints what happens. It returns those that survive, and how many of them should not.
func (t *tester) all(chosen []*mutant, same map[string]string, workers int) (survivors []*mutant, wrong int) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	queue := make(chan *mutant)
	for range max(workers, 1) {
		wg.Go(func() {
			for m := range queue {
				by, noticed := t.try(m)
				mu.Lock()
				reason, equivalent := same[m.key()]
				switch {
				case noticed && equivalent:
					wrong++
					survivors = append(survivors, m)
					fmt.Printf("NOT EQUIVALENT %v: noticed by %s; take it out of the list\n", m, by)
				case noticed:
					fmt.Printf("ok   %v: %s\n", m, by)
				case equivalent:
					survivors = append(survivors, m)
					fmt.Printf("same %v: %s\n", m, reason)
				default:
					wrong++
					survivors = append(survivors, m)
					fmt.Printf("SURVIVES %v: %s\n", m, by)
				}
				mu.Unlock()
			}
		})
	}
	for _, m := range chosen {
		queue <- m
	}
	close(queue)
	wg.Wait()
	return survivors, wrong
}
