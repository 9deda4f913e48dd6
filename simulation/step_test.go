package simulation

import (
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/probe"
	"github.com/matrix-mls/matrix-mls/internal/simnet"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// simulate runs a script and returns the property that broke, nil if all hold.
func simulate(sc script, dir string, sum *stats) (w *world, err error) {
	w = newWorld(sc, dir)
	defer w.close()
	defer func() {
		if sum != nil {
			sum.add(&w.stats)
		}
		switch r := recover().(type) {
		case nil:
		case *violation:
			err = r
			w.trace("%v\n%s", r, w.stand())
		default:
			panic(r)
		}
	}()
	w.found()
	w.lying = true
	if sc.faults.stale {
		w.net.Hide = func(_ *simnet.Server, e *simnet.Event) bool { return e.Type == rooms.TypeHead }
	}
	w.mutate()
	if n := sc.faults.users; sc.faults.bad || sc.faults.half {
		w.devices[n-1].bad = true
	}
	w.chooseLiar()
	for i, st := range sc.steps {
		w.rng = stepRand(sc.seed, uint64(st.a)<<32+uint64(st.b)<<8+uint64(st.op)+1)
		w.trace("step %d: %s %d %d %d", i, opNames[st.op], st.a, st.b, st.c)
		w.step(st)
	}
	w.end()
	return w, nil
}

// pick chooses one of those for which ok holds, nil if there is none.
func pick[T any](list []*T, n uint32, ok func(*T) bool) *T {
	list = slices.DeleteFunc(slices.Clone(list), func(x *T) bool { return !ok(x) })
	if len(list) == 0 {
		return nil
	}
	return list[int(n)%len(list)]
}

func (w *world) step(st step) {
	someone := pick(w.devices, st.a, func(d *device) bool { return d.member() && d.away <= w.net.Now })
	switch st.op {
	case opRun:
		w.run([]time.Duration{100, 300, 1000, 1000, 2000, 3000, 5000, 7000, 11_000, 16_000, 31_000, 47_000, 95_000}[st.a%13] * time.Millisecond)
	case opSend:
		if someone != nil {
			_ = w.send(someone)
		}
	case opPolicy:
		if admin := pick(w.devices, st.a, func(d *device) bool { return d.member() && d.user == w.devices[0].user }); admin != nil {
			_ = w.policy(admin, func(p *rooms.Policy) { p.Window = []int{3, 6, 16}[st.b%3] })
		}
	case opInvite:
		w.stepInvite(someone, st)
	case opLeave:
		w.stepLeave(someone, st)
	case opLogin:
		w.stepLogin(st)
	case opCrash:
		fuse := 1 + int(st.b)%40
		if st.a%2 == 0 {
			w.devices[int(st.a/2)%len(w.devices)].fuse = fuse
		} else {
			w.modules[int(st.a/2)%len(w.modules)].fuse = fuse
		}
	case opAway:
		d := w.devices[int(st.a)%len(w.devices)]
		d.away = max(d.away, w.net.Now+time.Duration(st.b%240)*time.Second)
	case opSplit:
		groups := make([]int, len(w.net.Servers))
		for i := range groups {
			groups[i] = w.rng.IntN(2)
		}
		w.net.Split(groups)
		w.cut()
	case opPart:
		w.stepPart(st)
	case opEach:
		w.stepEach(st)
	case opWait:
		w.run(time.Duration(min(st.a, 30)) * time.Minute)
	case opHeal:
		w.net.Heal()
		if w.script.faults.stale {
			w.net.Hide = nil
		}
	case opSoft:
		w.softFail([]int{0, 10, 30}[st.a%3])
	case opForge:
		w.forgeInvite(st.a)
	case opList:
		w.stepList(st)
	case opHang:
		w.stepHang(st)
	case opReset:
		w.stepReset(st)
	case opBackup:
		w.stepBackup(st)
	case opPropose:
		w.stepPropose(st)
	case opSwap:
		s := w.net.Servers[int(st.a)%len(w.net.Servers)]
		w.swapping[s.Name] = !w.swapping[s.Name]
	case opLie:
		w.stepLie(st)
	case opFake:
		w.strangersDevice(w.devices[int(st.a)%len(w.devices)], false)
	case opKeep:
		d := w.devices[int(st.a)%len(w.devices)]
		d.keeps = true
		d.probe.Without[probe.Leavers] = true
	case opLinks:
		w.net.Links = simnet.Links{
			Delay: 20 * time.Millisecond, Jitter: []time.Duration{60, 500, 3000}[st.a%3] * time.Millisecond,
			LostPct: []int{0, 5, 20}[st.b%3], GapPct: 20, MutePct: 60, TwicePct: 5,
		}
	}
}

// stepPart cuts the servers into two sides, or three, none of which is empty.
func (w *world) stepPart(st step) {
	groups, sides, n := make([]int, len(w.net.Servers)), 2+st.b%4/3, st.a
	for i := range groups {
		groups[i], n = int(n%sides), n/sides
	}
	if slices.Max(groups) == slices.Min(groups) {
		groups[int(st.c)%len(groups)] = (groups[0] + 1) % int(sides)
	}
	w.net.Split(groups)
	w.cut()
}

// cut notes that the network was cut anew.
func (w *world) cut() { w.wentOn = map[int]federation.Ref{} }

// stepEach: on each side of the network a member who is there says something, and
// renews its keys.
func (w *world) stepEach(st step) {
	done := map[int]bool{}
	for i := range w.devices {
		d := w.devices[(i+int(st.a%8))%len(w.devices)]
		if side := d.server.Side(); !done[side] && d.in() && !d.bad && d.away <= w.net.Now {
			done[side] = true
			_ = w.send(d)
			_ = w.renew(d)
		}
	}
}

// stepInvite: a member lets somebody in who is not in the room, or who was invited
// comes.
func (w *world) stepInvite(someone *device, st step) {
	invited := pick(w.devices, st.b, func(d *device) bool {
		return d.up && !d.gone && !d.stranger && d.server.Membership(w.room, d.user) == "invite"
	})
	if invited != nil && st.c%4 > 0 {
		_ = w.join(invited)
		return
	}
	if someone == nil {
		return
	}
	out := pick(w.devices, st.b, func(d *device) bool {
		m := someone.server.Membership(w.room, d.user)
		return !d.gone && !d.stranger && (m == "" || m == "leave")
	})
	switch {
	case out != nil:
		_ = w.invite(someone, out.user)
	case len(w.devices) < 8:
		user := id.UserID("@guest" + string(rune('a'+len(w.devices))) + ":" + w.net.Servers[int(st.c)%len(w.net.Servers)].Name)
		w.net.Register(user, w.reader(string(user)))
		w.newDevice(user, "D1").start()
		_ = w.invite(someone, user)
	}
}

// stepLeave: a user leaves, or the creator, who alone has the power, puts one out.
func (w *world) stepLeave(someone *device, st step) {
	if someone == nil {
		return
	}
	creator := w.devices[0]
	if st.b%3 == 0 && someone.user != creator.user {
		w.trace("%s leaves", someone.user)
		_ = w.leave(someone)
		return
	}
	other := pick(w.devices, st.c, func(d *device) bool {
		return d.user != creator.user && creator.server.Membership(w.room, d.user) == "join"
	})
	if other == nil || !creator.member() || creator.away > w.net.Now {
		return
	}
	_ = w.expel(creator, other.user, st.b%3 == 1)
}

// stepLogin: a user has a second device, or has it no more.
func (w *world) stepLogin(st step) {
	first := w.devices[int(st.a)%len(w.devices)]
	if first.gone {
		return
	}
	second := pick(w.devices, 0, func(d *device) bool { return d.user == first.user && d.id != "D1" && !d.gone })
	switch {
	case second != nil && st.b%2 == 0:
		w.logout(second)
	case second == nil && len(w.devices) < 8:
		n := 1
		for _, d := range w.devices {
			if d.user == first.user {
				n++
			}
		}
		w.newDevice(first.user, id.DeviceID("D"+string(rune('0'+n)))).start()
	}
}
