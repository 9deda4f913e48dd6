// Scale grows one MLS room on three real homeservers to many devices, measures what single acts cost there, and puts
// beside them what Megolm costs for the same acts on the same servers.
//
//	scale [-n 50] [-dir .lab/scale] [-json scale.json]
//	scale -proxy [-n 50] [-rooms 200] -bin bin
//
// A few dozen members are whole clients of the SDK, which this one process drives. The other leaves of the tree are real
// users and devices of the homeservers, joined to the room, cross-signed, with key packages that are claimed the ordinary
// way; nobody runs them. What was reached is written down in the work directory: started again with the same -dir after a
// crash, or a kill, the program goes on from there.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	o := options{}
	flag.IntVar(&o.leaves, "n", 50, "leaves of the tree")
	flag.IntVar(&o.perUser, "per-user", 0, "devices of each user that is not driven; 0: 2 below 22 leaves, 4 below 200, 8 from there on")
	flag.IntVar(&o.early, "early", 0, "how many of 100 of the users that nobody runs are in the room before it is switched; 0: 50 below 22 leaves, 80 below 200, 95 from there on")
	flag.IntVar(&o.batch, "batch", 0, "users that are invited before their joins are awaited; 0: a hundredth of the leaves, at least 25, at most 50")
	flag.IntVar(&o.atOnce, "at-once", 3, "people who come to one server at the same time")
	flag.IntVar(&o.driven, "driven", 0, "whole clients; 0: a quarter of the leaves, at least 6, at most 24, and 6 from 1,000 leaves on")
	flag.StringVar(&o.dir, "dir", ".lab/scale", "work directory")
	flag.StringVar(&o.bin, "bin", "", "directory with the built programs; empty: they are built")
	flag.StringVar(&o.json, "json", "", "write the figures to this file, too")
	flag.BoolVar(&o.megolm, "megolm", true, "measure Megolm beside it")
	flag.BoolVar(&o.proxy, "proxy", false, "measure mls-proxy in the room instead of single acts and Megolm")
	flag.IntVar(&o.rooms, "rooms", 200, "with -proxy: rooms of the account whose first /sync is measured")
	flag.BoolVar(&o.keep, "keep", false, "leave the homeservers running")
	flag.BoolVar(&o.short, "short", false, "measure few acts only: those that make test looks at")
	flag.StringVar(&o.profile, "cpuprofile", "", "write a CPU profile of the driven clients to this file")
	flag.DurationVar(&o.limit, "limit", 0, "give up after this time; 0: an hour, and one more for each 1,000 leaves")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "scale: %v\n", err)
		fmt.Fprintf(os.Stderr, "hint: the same command goes on where this one ended; logs are in %s\n", o.dir)
		os.Exit(1)
	}
}

type options struct {
	leaves, perUser, driven int
	early, batch, atOnce    int
	dir, bin, json, profile string
	megolm, keep, proxy     bool
	short, hold             bool // hold: the servers end with this program
	rooms                   int
	limit                   time.Duration
}

// check completes the options.
func (o *options) check() error {
	// Where the room is large, few whole clients, so that the processors are not all theirs; and most users are in the room
	// before it is switched, with many devices each, as an invitation costs some seconds and a device in the switch some
	// hundredths of one.
	perUser, early := 8, 95
	switch {
	case o.leaves < 22:
		perUser, early = 2, 50
	case o.leaves < 200:
		perUser, early = 4, 80
	}
	o.perUser, o.early = cmp.Or(o.perUser, perUser), cmp.Or(o.early, early)
	o.limit = cmp.Or(o.limit, time.Hour*time.Duration(1+o.leaves/1000))
	switch {
	case o.driven != 0:
	case o.leaves < 1000:
		o.driven = min(max(o.leaves/4, 6), 24)
	default:
		o.driven = 6
	}
	if o.batch == 0 {
		o.batch = min(max(o.leaves/100, 25), 50)
	}
	switch {
	case o.driven < 3:
		return errors.New("at least 3 clients are driven, one on each server: raise -driven")
	case o.leaves < o.driven+2*o.perUser:
		return fmt.Errorf("a tree of %d leaves has no room for %d driven clients and two users with %d devices each: raise -n", o.leaves, o.driven, o.perUser)
	case o.proxy && (o.bin == "" || o.rooms < 1):
		return errors.New("-proxy takes the built programs of -bin, and at least one room: make bench-proxy")
	case o.perUser < 1 || o.perUser > 20:
		return errors.New("-per-user takes 1 to 20")
	case o.early < 1 || o.early > 99 || o.batch < 1 || o.atOnce < 1:
		return errors.New("-early takes 1 to 99, -batch and -at-once at least 1")
	}
	var err error
	o.dir, err = filepath.Abs(o.dir)
	return err
}

func run(ctx context.Context, o options) (err error) {
	if err := o.check(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	s, err := open(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close(err == nil && !o.keep)) }()
	stopProfile, err := profile(o.profile)
	if err != nil {
		return err
	}
	defer stopProfile()
	parts := []func(context.Context) error{s.people, s.build, s.measure, s.beside}
	if o.proxy {
		parts = []func(context.Context) error{s.people, s.build, s.throughProxy}
	}
	for _, part := range parts {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return s.report()
}
