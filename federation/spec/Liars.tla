------------------------------- MODULE Liars --------------------------------
\* One sequencer signs whatever it likes. Agreement is not claimed then, but two
\* conflicting finals prove a liar, and nothing proves an honest module one.
EXTENDS Scenarios

VARIABLES liar

lvars == <<vars, liar>>

lies == Scenario.lies  \* what it may lie in
\* One that lies in nothing but promises acts as if each were honest.
mostlyHonest == lies = {"promise"}

\* What readers take of it: receipts that break no form.
LieVote(m, l) ==
  /\ "vote" \in lies
  /\ \E b \in Ballots[l], n \in Governed[l] : votes' = votes \cup {<<l, b, m, n>>}
  /\ UNCHANGED <<accepts, provs, promises, applied, mem, disk>>
LiePromise(m, l) ==
  /\ "promise" \in lies
  /\ \E b \in Ballots[l] \ {0} :
       /\ mostlyHonest => b > mem[m][l].promised
       /\ \/ promises' = promises \cup {<<l, b, m, None, Root>>}
          \/ \E c \in {c \in Ballots[l] : c < b}, n \in Governed[l] \cup {l} : promises' = promises \cup {<<l, b, m, c, n>>}
       /\ IF mostlyHonest THEN write(m, l, [mem[m][l] EXCEPT !.promised = b, !.accepted = Root]) ELSE UNCHANGED <<mem, disk>>
  /\ UNCHANGED <<accepts, provs, votes, applied>>
LieAccept(m, l) ==
  /\ "accept" \in lies
  /\ \E b \in {b \in Ballots[l] : Owner(l, b) = m} : \E x \in starts(l, b), n \in Governed[l] :
       /\ extends(n, x)
       /\ accepts' = accepts \cup {<<l, b, n, x>>}
  /\ UNCHANGED <<provs, votes, promises, applied, mem, disk>>
Lie(m) == \E l \in {l \in DOMAIN Lists : m \in Members(l)} : LieVote(m, l) \/ LiePromise(m, l) \/ LieAccept(m, l)

LiarsInit == Init /\ liar \in Modules
LiarsNext == (NextOf(IF mostlyHonest THEN Modules ELSE Modules \ {liar}) \/ Lie(liar)) /\ UNCHANGED liar
LiarsSpec == LiarsInit /\ [][LiarsNext]_lvars

\* Two receipts that m never honestly signs both.
Evidence(m) ==
  \/ \E a, b \in accepts : a[1] = b[1] /\ a[2] = b[2] /\ Owner(a[1], a[2]) = m /\ conflict(a[3], b[3])
  \/ \E v, w \in votes : v[1] = w[1] /\ v[2] = w[2] /\ v[3] = m /\ w[3] = m /\ conflict(v[4], w[4])
  \/ \E v \in votes, a \in accepts :
       v[1] = a[1] /\ v[2] = a[2] /\ v[3] = m /\ Owner(v[1], v[2]) = m /\ conflict(v[4], a[3])
  \/ \E p, r \in promises : p # r /\ p[1] = r[1] /\ p[2] = r[2] /\ p[3] = m /\ r[3] = m
  \/ \E p \in promises, v \in votes :
       /\ p[1] = v[1] /\ p[3] = m /\ v[3] = m /\ v[2] < p[2]
       /\ \/ p[4] < v[2]
          \/ p[4] = v[2] /\ ~extends(p[5], v[4])

LiesShow == Agreement \/ Evidence(liar)
HonestUnblamed == \A m \in Modules \ {liar} : ~Evidence(m)

LiarsWitness ==
  /\ note(30, "conflicting finals", ~Agreement)
  /\ note(31, "evidence", Evidence(liar))
=============================================================================
