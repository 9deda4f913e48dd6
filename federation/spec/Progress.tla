------------------------------ MODULE Progress ------------------------------
\* Progress: a live majority makes everything final that waits.
\*
\* A run of Epochs is cut off anywhere (Calm). From then on a majority of modules
\* hears everything that was sent and does what the code does, in the code's order,
\* with the waits as priorities: a takeover comes only when nobody has anything else
\* to do. What is done in calm comes to an end (ballots do); where it ends, no good
\* commit may be left waiting.
EXTENDS Scenarios

VARIABLES live  \* the modules that are there in calm; {} before

pvars == <<vars, live>>
calm == live # {}

\* A list whose modules are gone in calm is not ready any more.
lost == Down \cup Scenario.gone
readyNow(n) == IF n \notin DOMAIN Lists \/ ~keeps("ready") THEN TRUE ELSE Cardinality(Members(n) \ lost) >= Majority(n)

\* Members reject at once what they cannot apply.
doubt(n) == n \in Bad /\ n \notin vouched(applied)
acceptable(n) == n \notin Eras /\ ~doubt(n) /\ readyNow(n)
below(D, n) == IF D = {} THEN n ELSE Parent[CHOOSE x \in D : \A o \in D : Depth[x] <= Depth[o]]
cut(n) == below({x \in Below[n] : x # Root /\ doubt(x)}, n)
\* A list change that nobody can vote for.
heldUp(R, n) == keeps("shed-unready") /\ IsList(n) /\ n \notin R.finals /\ (n \notin votable(applied) \/ ~readyNow(n))
siblingWaits(n) == \E k \in Kids[Parent[n]] \ {n} : acceptable(k)
\* The list in force at the head.
inForce(R) == deepest({x \in Below[R.head] \cap DOMAIN Lists : ~IsList(x) \/ x \in R.finals})
config(n) == deepest(DOMAIN Lists \cap Below[n])

topBallot(l, m) == max({mem[m][l].promised} \cup {a[2] : a \in {a \in accepts : a[1] = l}})
nextBallot(l, m) == min({b \in 1..Scenario.rounds : b > topBallot(l, m) /\ Owner(l, b) = m} \cup {1000})
mayAsk(l, m) == nextBallot(l, m) <= Scenario.rounds

\* What an owner whose ballot is open starts from: <<base, what it accepts first>>.
opening(R, l, b) ==
  {LET h == IF keeps("cut-doubt") THEN cut(R.head) ELSE R.head
       T == {x \in Below[h] \cap Governed[l] : extends(x, from) /\ x # from
                /\ IsList(x) => readyNow(x) /\ (x \in votable(applied) \/ ~siblingWaits(x))}
   IN  <<from, IF extends(h, from) /\ T # {} /\ keeps("re-accept") THEN deepest(T) ELSE from>>
   : from \in starts(l, b)}

ofBallot(l, b) == {a \in accepts : a[1] = l /\ a[2] = b}

\* What module m owes under list l, in the code's order: the first that is not empty.
answers(l, m) ==
  LET B == {p[2] : p \in {p \in promises : p[1] = l /\ p[3] = Owner(l, p[2]) /\ p[3] # m /\ p[2] > mem[m][l].promised}}
  IN  IF B = {} THEN {} ELSE {<<"promise", l, m, max(B)>>}

\* The own ballot: what it is on, or {} while it is not open.
tips(R, l, m) ==
  LET s == mem[m][l] IN
  IF Owner(l, s.promised) # m THEN {}
  ELSE IF s.accepted # Root THEN {<<a[4], a[3]>> : a \in {a \in ofBallot(l, s.promised) : a[3] = s.accepted}}
  ELSE {<<o[1], o[1]>> : o \in {o \in opening(R, l, s.promised) : o[2] = l \/ (~keeps("re-accept") /\ o[2] = o[1])}}
opens(R, l, m) ==
  LET s == mem[m][l] IN
  IF Owner(l, s.promised) # m \/ s.accepted # Root \/ s.promised = 0 THEN {}
  ELSE {<<"accept", l, m, o[2], o[1]>> : o \in {o \in opening(R, l, s.promised) : o[2] # l /\ (keeps("re-accept") \/ o[2] # o[1])}}
rounds(R, l, m) ==
  IF mayAsk(l, m)
     /\ \E t \in tips(R, l, m) : \E x \in (Below[t[2]] \ Below[t[1]]) \cap Governed[l] :
          (doubt(x) \/ heldUp(R, x)) /\ siblingWaits(x)
  THEN {<<"promise", l, m, nextBallot(l, m)>>} ELSE {}
nexts(R, l, m) ==
  UNION {IF config(t[2]) = l /\ extends(R.head, t[2]) /\ (cut(t[2]) = t[2] \/ ~keeps("cut-doubt"))
         THEN {<<"accept", l, m, k, t[1]>> : k \in {k \in Kids[t[2]] : acceptable(k)}} ELSE {}
         : t \in tips(R, l, m)}
ballotVotes(R, l, m) ==
  LET s == mem[m][l]
      A == ofBallot(l, s.promised)
      a == CHOOSE a \in A : \A o \in A : Depth[o[3]] <= Depth[a[3]]
      N == {n \in Below[a[3]] \cap Governed[l] : extends(n, a[4]) /\ n \in votable(applied) /\ readyNow(n)}
      n == deepest(N)
  IN  IF \/ A = {} THEN {}
      ELSE IF \/ conflict(a[3], R.final)
              \/ (~keeps("vote-off-head") /\ ~extends(R.head, a[3]))
              \/ N = {}
           THEN {}
      ELSE IF \/ n \in R.finals
              \/ (s.ballot = s.promised /\ (~extends(n, s.ref) \/ n = s.ref))
           THEN {}
      ELSE {<<"vote", l, m, n, s.promised>>}

first(seq) == LET I == {i \in DOMAIN seq : seq[i] # {}} IN IF I = {} THEN {} ELSE seq[min(I)]
owes(R, l, m) == first(<<answers(l, m), opens(R, l, m), rounds(R, l, m), nexts(R, l, m), ballotVotes(R, l, m)>>)

\* The highest ballot had to extend a list change that is not ready: no ballot helps.
boundUnready(R, l) ==
  LET A == {a \in accepts : a[1] = l}
      T == {a \in A : \A o \in A : o[2] <= a[2]}
  IN  \E a \in T : \E x \in Below[a[4]] \cap Governed[l] : IsList(x) /\ x \notin R.finals /\ ~readyNow(x)

stalled(R, l) == ~boundUnready(R, l) /\
  \/ \E x \in Below[R.head] \cap Governed[l] \cap votable(applied) : x \notin R.finals /\ readyNow(x)
  \/ LET at   == below({x \in Below[R.head] \cap Governed[l] : x \notin R.finals /\ (doubt(x) \/ heldUp(R, x))}, R.head)
         \* Beside a commit that is held up, what a lower ballot accepted waits as well.
         held == at # R.head /\ keeps("displaced-waits")
     IN  config(at) = l /\ \E k \in Kids[at] : acceptable(k) /\ (held \/ \A a \in accepts : a[1] = l => ~extends(a[3], k))
takeovers(R, l) ==
  IF keeps("takeover") /\ stalled(R, l)
  THEN {<<"promise", l, m, nextBallot(l, m)>> : m \in {m \in live \cap Members(l) : mayAsk(l, m)}} ELSE {}

\* Of several modules that owe something the lowest in rank goes first.
steps ==
  LET R == Reading
      l == inForce(R)
      M == {m \in live \cap Members(l) : owes(R, l, m) # {}}
  IN  IF M = {} THEN takeovers(R, l)
      ELSE owes(R, l, CHOOSE m \in M : \A o \in M : Rank(l, m) <= Rank(l, o))

do(x) ==
  LET l == x[2]
      m == x[3]
      s == mem[m][l]
  IN  CASE x[1] = "promise" -> Promise(m, l, x[4])
        [] x[1] = "accept"  -> /\ accepts' = accepts \cup {<<l, s.promised, x[4], x[5]>>}
                               /\ write(m, l, [s EXCEPT !.accepted = x[4]])
                               /\ UNCHANGED <<provs, votes, promises, applied>>
        [] x[1] = "vote"    -> /\ votes' = votes \cup {<<l, x[5], m, x[4]>>}
                               /\ write(m, l, [s EXCEPT !.ballot = x[5], !.ref = x[4]])
                               /\ UNCHANGED <<accepts, provs, promises, applied>>

Calm == /\ ~calm
        /\ live' \in {L \in SUBSET (Modules \ lost) : L # {} /\
             \A l \in {l \in DOMAIN Lists : Cardinality(Members(l) \ lost) >= Majority(l)} :
               Cardinality(L \cap Members(l)) = Majority(l)}
        /\ UNCHANGED vars

ProgressInit == Init /\ live = {}
ProgressNext ==
  \/ ~calm /\ Next /\ UNCHANGED live
  \/ Calm
  \/ calm /\ (\E x \in steps : do(x)) /\ UNCHANGED live
ProgressSpec == ProgressInit /\ [][ProgressNext]_pvars

\* Where calm ends, nothing good waits on the newest final commit, unless somebody
\* voted for a list change that is not ready: it may be final, so all wait for it.
NothingWaits ==
  calm => LET R == Reading IN
    \/ \A k \in Kids[R.final] : k \in Eras \/ k \in Bad \/ ~readyNow(k)
    \/ steps # {}
    \/ \E v \in votes : \E x \in Below[v[4]] : IsList(x) /\ x \notin R.finals /\ ~readyNow(x)

CalmWitness ==
  LET F == Final IN calm =>
    /\ note(20, "final by a takeover in calm", \E v \in votes : v[2] > max(Ballots[v[1]]) /\ v[4] \in F)
    /\ note(21, "bad commit shed", \E a \in accepts : a[3] \in Bad /\ \E f \in F : conflict(f, a[3]))
    /\ HasList => note(22, "list changed in calm", \E f \in F : IsList(f))
    /\ HasList => note(23, "new list serves in calm", \E f \in F : IsList(Gov[f]))
    /\ note(24, "provisional commit displaced", \E p \in provs : \E f \in F : conflict(f, p[3]))
    /\ HasList => note(25, "list change shed", \E a \in accepts : IsList(a[3]) /\ ~readyNow(a[3]) /\ \E f \in F : conflict(f, a[3]))
=============================================================================
