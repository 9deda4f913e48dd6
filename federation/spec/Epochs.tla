------------------------------- MODULE Epochs -------------------------------
\* Epoch coordination: ballots, list changes, eras, vouching and the fork choice.
\*
\* A room has a fixed tree of commits that members may send at any time. Modules
\* sign receipts, members sign statements; what is sent stays in a set and may be
\* seen by anyone now, later or never. So every action of a module may rest on any
\* part of what was sent: loss, delay, repetition, reordering, partition and a
\* module that stopped are all in the model. README.md maps it to the code.
EXTENDS Integers, FiniteSets, Sequences, TLC

CONSTANTS
  Scenario,  \* the room: a record, see Scenarios.tla
  Mutate     \* the rules that are left out; {} is the protocol

Root     == 0
Commits  == Scenario.commits   \* refs; their order as numbers is the order of refs
Parent   == Scenario.parent
Author   == Scenario.author    \* user
Lists    == Scenario.lists     \* sequencers in order, by the commit that sets them
Eras     == Scenario.eras      \* commits that open an era
Bad      == Scenario.bad       \* see Holds
Leaves   == Scenario.leaves    \* user of each leaf
Adds     == Scenario.adds      \* leaf -> the commit that adds it, or Root
Admins   == Scenario.admins    \* users who are admins from that commit on
Ballots  == Scenario.ballots   \* the ballots that may be used, by list
Given    == Scenario.applied   \* statements that were made before the run
MaxProvisional == Scenario.provisional
MayCrash == Scenario.crash
Down     == Scenario.down      \* modules that were never there (gone: those that are not there in calm)

keeps(rule) == rule \notin Mutate

-----------------------------------------------------------------------------
\* The tree.

Nodes == Commits \cup {Root}
RECURSIVE up(_)
up(n) == IF n = Root THEN {Root} ELSE {n} \cup up(Parent[n])
Below   == TLCEval([n \in Nodes |-> up(n)])      \* n and its ancestors
Depth   == TLCEval([n \in Nodes |-> Cardinality(Below[n])])
Kids    == TLCEval([n \in Nodes |-> {k \in Commits : Parent[k] = n}])
extends(a, b) == b \in Below[a]
conflict(a, b) == ~extends(a, b) /\ ~extends(b, a)

deepest(S)  == CHOOSE n \in S : \A o \in S : Depth[o] <= Depth[n]
max(S)      == CHOOSE n \in S : \A o \in S : o <= n
min(S)      == CHOOSE n \in S : \A o \in S : o >= n

IsList(n)  == n \in DOMAIN Lists /\ n # Root /\ n \notin Eras  \* a list change
EraBase  == TLCEval([n \in Nodes |-> deepest({x \in Below[n] : x = Root \/ x \in Eras})])
EraNo    == TLCEval([n \in Nodes |-> Cardinality(Below[n] \cap Eras)])
None     == -1
\* The list governing n: set by its nearest strict ancestor that sets one.
Gov      == TLCEval([n \in Nodes |-> IF n = Root \/ n \in Eras THEN None
                                     ELSE deepest(DOMAIN Lists \cap Below[Parent[n]])])
\* What receipts under a list can be about.
Governed == TLCEval([l \in DOMAIN Lists |->
               IF keeps("list-stop") THEN {n \in Commits : Gov[n] = l}
               ELSE {n \in Commits : n # l /\ l \in Below[n] /\ EraBase[n] = EraBase[l]}])

Members(l) == {Lists[l][i] : i \in DOMAIN Lists[l]}
Modules    == UNION {Members(l) : l \in DOMAIN Lists}
Size(l)    == Len(Lists[l])
Majority(l) == Size(l) \div 2 + 1
Rank(l, m) == CHOOSE i \in DOMAIN Lists[l] : Lists[l][i] = m
\* Ballot (round, rank) as one number: 0 for (0, 0), then 1 + n (round - 1) + rank.
Owner(l, b) == IF b = 0 THEN Lists[l][1] ELSE Lists[l][1 + ((b - 1) % Size(l))]

\* A list change is accepted and voted for once a majority of its list said ready.
ready(n)  == IF n \notin DOMAIN Lists \/ ~keeps("ready") THEN TRUE
             ELSE Cardinality(Members(n) \ Down) >= Majority(n)

-----------------------------------------------------------------------------
\* Who vouches for what.

InTree(f, n) == extends(n, Adds[f])
\* A bad commit: nobody could apply it but the author's own leaves and those that
\* came in by it or later (by a Welcome, or by an external commit).
Holds(f, n) == /\ InTree(f, n)
               /\ \A x \in Bad \cap Below[n] : Leaves[f] = Author[x] \/ extends(Adds[f], x)
Alone(n) == \A f \in DOMAIN Leaves : InTree(f, Parent[n]) => Leaves[f] = Author[n]

\* The commits that a statement by leaf f for d vouches for.
Vouches == TLCEval([f \in DOMAIN Leaves |-> [d \in Commits |->
  {r \in Commits :
     /\ extends(d, r) /\ InTree(f, d)
     /\ \/ Alone(r)
        \/ /\ ~keeps("since-parent") \/ InTree(f, Parent[r])
           /\ ~keeps("not-author") \/ Leaves[f] # Author[r]}]])

VARIABLES
  accepts,   \* <<list, ballot, ref, what the ballot's promises bind it to>>
  provs,     \* provisional accepts: <<list, rank, ref>>
  votes,     \* <<list, ballot, module, ref>>
  promises,  \* <<list, ballot, module, ballot of the last vote or None, its ref>>
  applied,   \* statements: <<leaf, ref>>
  mem,       \* what a module remembers, by module and list
  disk       \* what it has written

vars == <<accepts, provs, votes, promises, applied, mem, disk>>

\* promised: the highest promised ballot; accepted: the last accept in it, Root for
\* none; ballot, ref: the last vote.
Fresh == [promised |-> 0, accepted |-> Root, ballot |-> None, ref |-> Root]

vouched(A)  == UNION {Vouches[a[1]][a[2]] : a \in A}
\* Everything down to the era's base is vouched for, the era commit included.
votable(A)  == LET V == vouched(A)
               IN  {n \in Commits : \A x \in Below[n] : x = Root \/ EraBase[x] # EraBase[n] \/ x \in V}
mayVote(A)  == IF keeps("applied") THEN votable(A) ELSE Commits

-----------------------------------------------------------------------------
\* Finality: a function of votes and statements.

quorumOfVotes(l) == IF keeps("vote-quorum") THEN Majority(l) ELSE Majority(l) - 1

\* What a majority of the list voted for in one ballot, by itself or above.
voted(V, A, l) ==
  LET ok == mayVote(A)
      VL == {v \in V : v[1] = l /\ v[4] \in ok}
  IN  {n \in Governed[l] : \E b \in {v[2] : v \in VL} :
         Cardinality({v[3] : v \in {w \in VL : w[2] = b /\ extends(w[4], n)}}) >= quorumOfVotes(l)}

\* A list can have receipts: an era's from the start, a changed one once its change
\* is final.
RECURSIVE active(_, _, _, _)
active(V, A, C, l) ==
  \/ ~IsList(l)
  \/ /\ active(V, A, C, Gov[l])
     /\ IF keeps("list-final") THEN l \in voted(V, A, Gov[l])
        ELSE \E a \in C : a[1] = Gov[l] /\ extends(a[3], l)

activeLists(V, A, C) == {l \in DOMAIN Lists : active(V, A, C, l)}
finals(V, A, C) == UNION {voted(V, A, l) : l \in activeLists(V, A, C)}

-----------------------------------------------------------------------------
\* The fork choice: the same function of the set of events for everyone.
\* C: accepts, P: provisional accepts, V: votes, A: statements.

\* How n is accepted, as a tuple that is the larger the better; <<>> for not at all.
\* The lowest ref comes first at the end.
covers(a, n) == IF keeps("chain-cover") THEN extends(a[3], n) ELSE a[3] = n

standing(C, P, F, L, n) ==
  LET in   == {a[2] : a \in {a \in C : a[1] \in L /\ n \in Governed[a[1]] /\ covers(a, n)}}
      own  == {p[2] : p \in {p \in P : p[1] \in L /\ n \in Governed[p[1]] /\ p[3] = n}}
      over == {p \in P : p[1] \in L /\ n \in Governed[p[1]] /\ extends(p[3], n) /\ p[3] # n /\ Gov[p[3]] = Gov[n]}
      late == IF IsList(n) /\ n \notin F THEN 0 ELSE 1
      last == max(Commits) - n
  IN  IF ~keeps("ballot-first")
      THEN IF in \cup own # {} \/ over # {} THEN <<0, 0, 0, last>> ELSE <<>>
      ELSE IF in # {} THEN <<late, 3, max(in), last>>
      ELSE IF own # {} THEN <<late, 2, 100 - min(own), last>>
      ELSE IF over # {} THEN <<late, 1, 0, last>>
      ELSE IF \E f \in F : extends(f, n) /\ EraBase[f] = EraBase[n] THEN <<late, 0, 0, last>>
      ELSE <<>>

before(s, t) == \E i \in 1..4 : s[i] > t[i] /\ \A j \in 1..(i-1) : s[j] = t[j]

RECURSIVE walk(_, _, _, _, _)
walk(C, P, F, L, n) ==
  LET st == TLCEval([k \in Kids[n] \ Eras |-> standing(C, P, F, L, k)])
      ks == {k \in DOMAIN st : st[k] # <<>>}
  IN  IF ks = {} THEN n
      ELSE walk(C, P, F, L, CHOOSE k \in ks : \A o \in ks \ {k} : before(st[k], st[o]))

newest(F, e) == LET S == {f \in F : EraBase[f] = e /\ f # e}
                    D == {f \in S : \A o \in S : Depth[o] <= Depth[f]}
                IN  IF S = {} THEN e ELSE min(D)

RECURSIVE deepestFinal(_, _)
deepestFinal(F, n) == IF n = Root \/ n \in F THEN Depth[n] ELSE deepestFinal(F, Parent[n])

\* An era counts if the one it leaves counts, its parent is accepted, its author is
\* an admin at the parent and at the newest final it leaves, and it is vouched for.
RECURSIVE counts(_, _, _, _, _, _)
counts(C, P, F, L, A, e) ==
  \/ e = Root
  \/ LET left == EraBase[Parent[e]] IN
     /\ counts(C, P, F, L, A, left)
     /\ Parent[e] = left \/ standing(C, P, F, L, Parent[e]) # <<>>
     /\ Author[e] \in Admins[Parent[e]]
     /\ ~keeps("era-admin") \/ Author[e] \in Admins[newest(F, left)]
     /\ ~keeps("era-vouched") \/ e \in vouched(A)

eraBefore(F, a, b) ==
  \/ EraNo[a] > EraNo[b]
  \/ EraNo[a] = EraNo[b] /\ deepestFinal(F, Parent[a]) > deepestFinal(F, Parent[b])
  \/ EraNo[a] = EraNo[b] /\ deepestFinal(F, Parent[a]) = deepestFinal(F, Parent[b]) /\ a < b

\* What anyone who holds these events reads from them.
reading(C, P, A, F, L) ==
  LET cs   == {e \in Eras : counts(C, P, F, L, A, e)}
      FE   == F \cup cs
      era  == IF cs = {} \/ ~keeps("era-first") THEN Root
              ELSE CHOOSE e \in cs : \A o \in cs \ {e} : eraBefore(FE, e, o)
      new  == newest(F, era)
      from == IF keeps("final-first") THEN new ELSE era
  IN  [era |-> era, eras |-> cs, final |-> new, finals |-> F, head |-> walk(C, P, F, L, from)]

Active  == activeLists(votes, applied, accepts)
Final   == finals(votes, applied, accepts)
Reading == reading(accepts, provs, applied, Final, Active)

-----------------------------------------------------------------------------
\* What a module does. It serves a list that is in force for what it may have seen.

serving(l) == /\ l \in activeLists(votes, applied, accepts)
              /\ IF l \in Eras /\ keeps("era-vouched") THEN l \in vouched(applied) ELSE TRUE

write(m, l, s) ==
  /\ mem' = [mem EXCEPT ![m][l] = s]
  /\ disk' = IF keeps("persist") THEN [disk EXCEPT ![m][l] = s] ELSE disk

\* Takeover: the owner's own promise asks, the others answer once. A promise gives
\* up every lower ballot and reports the last vote.
Promise(m, l, b) ==
  LET s == mem[m][l] IN
  /\ b > s.promised
  /\ IF Owner(l, b) = m THEN TRUE ELSE \E p \in promises : p[1] = l /\ p[2] = b /\ p[3] = Owner(l, b)
  /\ promises' = promises \cup {<<l, b, m, s.ballot, s.ref>>}
  /\ write(m, l, [s EXCEPT !.promised = b, !.accepted = Root])
  /\ UNCHANGED <<accepts, provs, votes, applied>>

quorumOfPromises(l) == IF keeps("promise-quorum") THEN Majority(l) ELSE Majority(l) - 1

\* What the first accept of a ballot must extend, as these promises show it.
bases(l, Q) ==
  LET told == {p \in Q : p[4] # None}
      high == {p \in told : \A o \in told : o[4] <= p[4]}
      deep == {p \in high : \A o \in high : Depth[o[5]] <= Depth[p[5]]}
      S    == {p[5] : p \in IF keeps("deepest-tie") THEN deep ELSE high}
  IN  IF told = {} \/ ~keeps("promised-value") THEN {l}
      ELSE IF keeps("deepest-tie") THEN {min(S)} ELSE S

\* For voting a promise counts only if its last vote is one that an honest module
\* could have cast: covered by an accept of its ballot, and on what that was bound to.
\* For the head one for what is not above the newest final counts in any case; only a
\* liar makes a difference between the two, and no head is claimed here with liars.
backed(p) ==
  IF p[4] = None \/ ~keeps("backed") THEN TRUE
  ELSE \E a \in accepts : /\ a[1] = p[1] /\ a[2] = p[4] /\ extends(a[3], p[5])
                          /\ keeps("ballot-base") => extends(p[5], a[4])

\* What ballot b may be bound to.
starts(l, b) ==
  LET PB == {p \in promises : p[1] = l /\ p[2] = b /\ backed(p)}
      QS == {Q \in SUBSET PB : Cardinality(Q) = quorumOfPromises(l) /\ Cardinality({p[3] : p \in Q}) = Cardinality(Q)}
  IN  IF b = 0 THEN {l} ELSE UNION {bases(l, Q) : Q \in QS}

\* The owner of the highest promised ballot accepts: first something on the
\* promises' base (its head, if that extends it, in the code), then on top of its
\* previous accept.
Accept(m, l) ==
  LET s == mem[m][l]
      b == s.promised
      B == IF s.accepted = Root THEN starts(l, b)
           ELSE {a[4] : a \in {a \in accepts : a[1] = l /\ a[2] = b /\ a[3] = s.accepted}}
  IN  /\ Owner(l, b) = m
      /\ \E x \in B, n \in Governed[l] :
           /\ extends(n, x) /\ ready(n)
           /\ s.accepted # Root => extends(n, s.accepted) /\ n # s.accepted
           /\ accepts' = accepts \cup {<<l, b, n, x>>}
           /\ write(m, l, [s EXCEPT !.accepted = n])
      /\ UNCHANGED <<provs, votes, promises, applied>>

\* A vote, in the highest promised ballot, for a votable commit that an accept of
\* the ballot covers, if it extends the last vote there, and never for one below
\* what the ballot is bound to: in a later ballot that vote would hide deeper ones.
Vote(m, l) ==
  LET s  == mem[m][l]
      ok == mayVote(applied)
  IN  \E a \in accepts :
        /\ a[1] = l
        /\ IF keeps("highest-promised") THEN a[2] = s.promised ELSE a[2] <= s.promised
        /\ \E n \in Below[a[3]] \cap Governed[l] \cap ok :
             /\ ~(s.ballot = a[2] /\ s.ref = n)
             /\ s.ballot = a[2] /\ keeps("extend-vote") => extends(n, s.ref)
             /\ keeps("ballot-base") => extends(n, a[4])
             /\ ready(n)
             /\ votes' = votes \cup {<<l, a[2], m, n>>}
             /\ write(m, l, [s EXCEPT !.ballot = a[2], !.ref = n])
             /\ UNCHANGED <<accepts, provs, promises, applied>>

\* Usable, never final: a side without a majority goes on.
Provisional(m, l, n) ==
  /\ Cardinality(provs) < MaxProvisional
  /\ n \in Governed[l] /\ n \notin DOMAIN Lists
  /\ provs' = provs \cup {<<l, Rank(l, m), n>>}
  /\ UNCHANGED <<accepts, votes, promises, applied, mem, disk>>

\* Only where a rule is left out does this change anything: a module whose receipts
\* left before they were on disk starts again from what is there.
Persist(m) == /\ ~keeps("persist") /\ disk[m] # mem[m]
              /\ disk' = [disk EXCEPT ![m] = mem[m]]
              /\ UNCHANGED <<accepts, provs, votes, promises, applied, mem>>
Crash(m)   == /\ MayCrash
              /\ disk[m] # mem[m]
              /\ mem' = [mem EXCEPT ![m] = disk[m]]
              /\ UNCHANGED <<accepts, provs, votes, promises, applied, disk>>

\* A member says that it applied n, by a statement or by a commit on top.
State(f, n) ==
  /\ Holds(f, n) /\ <<f, n>> \notin applied
  /\ applied' = applied \cup {<<f, n>>}
  /\ UNCHANGED <<accepts, provs, votes, promises, mem, disk>>

Init ==
  /\ accepts = {} /\ provs = {} /\ votes = {} /\ promises = {} /\ applied = Given
  /\ mem = [m \in Modules |-> [l \in {l \in DOMAIN Lists : m \in Members(l)} |-> Fresh]]
  /\ disk = mem

NextOf(M) ==
  \/ \E l \in DOMAIN Lists : serving(l) /\ \E m \in Members(l) \cap M :
       \/ \E b \in Ballots[l] : Promise(m, l, b)
       \/ Accept(m, l)
       \/ Vote(m, l)
       \/ \E n \in Governed[l] : Provisional(m, l, n)
  \/ \E m \in M : Persist(m) \/ Crash(m)
  \/ \E s \in Scenario.statements : State(s[1], s[2])
Next == NextOf(Modules \ Down)

Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------
\* Properties.

TypeOK ==
  /\ \A a \in accepts : a[2] \in Ballots[a[1]] /\ a[3] \in Governed[a[1]] /\ extends(a[3], a[4])
  /\ \A v \in votes : v[1] \in DOMAIN Lists /\ v[3] \in Members(v[1]) /\ v[4] \in Governed[v[1]]
  /\ \A p \in promises : p[2] > 0 /\ p[4] < p[2]

\* 2: within an era no two conflicting commits become final, whatever lists.
Agreement ==
  LET F == Final
  IN  \A x, y \in F : EraBase[x] = EraBase[y] => ~conflict(x, y)

\* 2: no commit becomes final, and no era is followed, that no other user could apply.
NoBadFinal ==
  Bad # {} => LET R == Reading IN
      \A x \in R.finals \cup R.eras : Bad \cap Below[x] = {}

\* After a list change the old list makes nothing above it final.
OldListStops ==
  \A x \in {x \in Commits : IsList(x)} :
    LET V == {v \in votes : v[1] = Gov[x] /\ v[4] # x /\ extends(v[4], x)}
    IN  \A v \in V : Cardinality({w[3] : w \in {w \in V : w[2] = v[2]}}) < Majority(Gov[x])

\* 2: a final of the named era is on the head, for whoever holds its votes and any
\* part of the accepts.
FinalOnHead ==
  LET F == Final
      L == Active
  IN \A C \in SUBSET accepts :
    LET R == reading(C, provs, applied, F, L)
    IN  \A f \in R.finals : EraBase[f] = R.era => extends(R.head, f)

\* 15: a vote is never below a promise, and no promise hides a vote.
NoHiddenVote ==
  \A p \in promises, v \in votes :
    p[1] = v[1] /\ p[3] = v[3] /\ v[2] < p[2] =>
      \/ p[4] > v[2]
      \/ p[4] = v[2] /\ extends(p[5], v[4])

\* Why later ballots agree: what q voted for in one ballot, every vote in a later one
\* extends. A vote below it would hide it from the next promises.
LaterVotesExtend ==
  \A l \in DOMAIN Lists : \A b \in Ballots[l] :
    LET V == {v \in votes : v[1] = l /\ v[2] = b}
        D == {v[4] : v \in V}
        chosen == {n \in D : Cardinality({v[3] : v \in {v \in V : extends(v[4], n)}}) >= Majority(l)}
    IN  \A w \in votes : w[1] = l /\ w[2] > b => \A n \in chosen : extends(w[4], n)

\* 15: an honest module's votes in a ballot are one chain, and so are its accepts.
OneChain ==
  /\ \A v, w \in votes : v[1] = w[1] /\ v[2] = w[2] /\ v[3] = w[3] => ~conflict(v[4], w[4])
  /\ \A a, b \in accepts : a[1] = b[1] /\ a[2] = b[2] => ~conflict(a[3], b[3])

\* 15, as steps: each vote extends the last, none is below a promise.
VotesGrow ==
  [][\A v \in votes' \ votes :
       /\ \A p \in promises : p[1] = v[1] /\ p[3] = v[3] => p[2] <= v[2]
       /\ \A w \in votes : w[1] = v[1] /\ w[2] = v[2] /\ w[3] = v[3] => extends(v[4], w[4])]_vars

\* The same for who holds everything.
FinalLeads == LET R == Reading IN \A f \in R.finals : EraBase[f] = R.era => extends(R.head, f)

\* 1: the head is a function: siblings are never level.
OneHead ==
  LET F == Final
      L == Active
  IN  \A n \in Nodes : \A x, y \in Kids[n] :
        LET s == standing(accepts, provs, F, L, x)
            t == standing(accepts, provs, F, L, y)
        IN  x # y /\ s # <<>> /\ t # <<>> => before(s, t) # before(t, s)

\* 1: an accept that was lost below another of its ballot changes no head.
LostAccepts ==
  LET F == Final
      L == Active
      R == Reading
  IN \A C \in SUBSET accepts :
    (\A a \in accepts : \E c \in C : c[1] = a[1] /\ c[2] = a[2] /\ extends(c[3], a[3])) =>
      reading(C, provs, applied, F, L).head = R.head

\* 2: what is accepted in a ballot is never displaced by a lower one, nor by a
\* provisional accept, while no list changes.
HighestBallotLeads ==
  LET R == Reading
      A == {a \in accepts : a[1] = R.era}
      T == {a \in A : \A o \in A : o[2] <= a[2]}
  IN  (\A n \in Commits : IsList(n) => EraBase[n] # R.era) => \A a \in T : ~conflict(a[3], R.head)

\* An era that counts holds the head; what is final in it as well.
EraLeads ==
  Eras # {} => LET R == Reading IN
      \A e \in R.eras : EraNo[EraBase[R.head]] >= EraNo[e]

\* A former admin cannot lead the room back to when he was one.
EraByAdmin ==
  Eras # {} => LET R == Reading IN
    R.era # Root =>
    Author[R.era] \in Admins[newest(R.finals, EraBase[Parent[R.era]])]

\* Witnesses: each is printed once (per worker) when it is reached. A check that does
\* not print all that it should did not see what it claims.
note(i, name, reached) ==
  IF TLCGet(i) = 1 THEN TRUE
  ELSE IF reached THEN TLCSet(i, 1) /\ PrintT(<<"WITNESS", name>>) ELSE TRUE
HasList == \E n \in Commits : IsList(n)
Witness ==
  LET F == Final
      R == Reading
  IN  /\ note(1, "final", F # {})
      /\ note(2, "final after takeover", \E v \in votes : v[2] > 0 /\ v[4] \in F)
      /\ note(3, "displaced by takeover",
              \E a, b \in accepts : a[1] = b[1] /\ a[2] < b[2] /\ conflict(a[3], b[3]))
      /\ note(4, "bound by a vote", \E a, b \in accepts :
              a[1] = b[1] /\ a[2] < b[2] /\ b[4] # b[1] /\ \E v \in votes : v[1] = b[1] /\ v[4] = b[4])
      /\ HasList => note(5, "list change final", \E n \in F : IsList(n))
      /\ HasList => note(6, "final by the new list", \E n \in F : IsList(Gov[n]))
      /\ Eras # {} => note(7, "era", R.era # Root)
      /\ Eras # {} => note(8, "final in the era", \E n \in F : EraBase[n] # Root /\ EraBase[n] = R.era)
      /\ Eras # {} => note(9, "era overrides a final", R.era # Root /\ \E n \in F : EraBase[n] = Root /\ ~extends(R.head, n))
      /\ note(10, "provisional head",
              \E p \in provs : extends(R.head, p[3]) /\ p[3] \notin F /\ \A a \in accepts : ~extends(a[3], p[3]))
      /\ note(11, "bad commit accepted and vouched for by its own",
              \E n \in Bad, a \in accepts : extends(a[3], n) /\ \E s \in applied : s[2] = n)
      /\ note(12, "tie", \E p, r \in promises : p[1] = r[1] /\ p[2] = r[2] /\ p[4] # None /\ p[4] = r[4] /\ p[5] # r[5])
ASSUME \A i \in 1..40 : TLCSet(i, 0)
=============================================================================
