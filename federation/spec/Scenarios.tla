----------------------------- MODULE Scenarios ------------------------------
\* The rooms that are checked.
EXTENDS Epochs

three == <<"s1", "s2", "s3">>
Plain == [
  commits |-> {}, parent |-> <<>>, author |-> <<>>,
  lists |-> [l \in {0} |-> three], eras |-> {}, bad |-> {},
  leaves |-> [f \in {"alice", "bob"} |-> f], adds |-> [f \in {"alice", "bob"} |-> 0],
  admins |-> [n \in 0..9 |-> {"alice"}],
  ballots |-> [l \in {0} |-> {0, 2}],
  applied |-> {}, statements |-> {}, provisional |-> 0, crash |-> FALSE, down |-> {}, gone |-> {}, rounds |-> 0,
  lies |-> {"accept", "vote", "promise"} ]

\* Ballots: 1 with 2 and 3 on it, 4 beside it. Everything is vouched for.
Ballots4 == [Plain EXCEPT
  !.commits = 1..4, !.parent = <<0, 1, 1, 0>>, !.author = <<"alice", "alice", "alice", "alice">>,
  !.applied = {"bob"} \X (1..4),
  !.ballots = [l \in {0} |-> {0, 2, 3}],
  !.crash = TRUE ]
Ballots2 == [Ballots4 EXCEPT !.ballots = [l \in {0} |-> {0, 2}]]
Ballots3 == [Ballots4 EXCEPT !.commits = 1..3, !.parent = <<0, 1, 1>>, !.author = <<"alice", "alice", "alice">>,
  !.applied = {"bob"} \X (1..3)]
\* Three ballots over two siblings.
Rounds2 == [Ballots4 EXCEPT !.commits = 1..2, !.parent = <<0, 0>>, !.author = <<"alice", "alice">>,
  !.applied = {"bob"} \X (1..2)]

\* The fork choice before every part of the accepts, with a provisional one.
Fork3 == [Ballots4 EXCEPT !.commits = 1..3, !.parent = <<0, 1, 0>>, !.author = <<"alice", "alice", "alice">>,
  !.applied = {"bob"} \X (1..3), !.ballots = [l \in {0} |-> {0, 2}], !.provisional = 1 ]

\* List change: 1 sets a list; 2 beside it; 3 and 4 on 1, under the new list.
Lists4 == [Plain EXCEPT
  !.commits = 1..4, !.parent = <<0, 0, 1, 1>>, !.author = <<"alice", "alice", "alice", "alice">>,
  !.applied = {"bob"} \X (1..4),
  !.lists = (0 :> three) @@ (1 :> <<"s2", "s3", "s1">>),
  !.ballots = (0 :> {0, 2}) @@ (1 :> {0, 2}) ]

\* Vouching: Alice's commit 1 can be applied by nobody, but Carol, whom it adds, has
\* a Welcome, and Alice has a second device. Bob comes back by the external commit
\* 3. 2 is Bob's, beside 1; 4 on it.
Vouch4 == [Plain EXCEPT
  !.commits = 1..4, !.parent = <<0, 0, 1, 2>>, !.author = <<"alice", "bob", "bob", "bob">>,
  !.bad = {1},
  !.leaves = [f \in {"alice", "alice2", "bob", "bob2", "carol"} |->
                CASE f \in {"alice", "alice2"} -> "alice" [] f \in {"bob", "bob2"} -> "bob" [] OTHER -> "carol"],
  !.adds = [f \in {"alice", "alice2", "bob", "bob2", "carol"} |->
                CASE f = "carol" -> 1 [] f = "bob2" -> 3 [] OTHER -> 0],
  !.statements = {<<"alice2", 1>>, <<"carol", 1>>, <<"bob2", 3>>, <<"bob", 2>>, <<"alice", 4>>} ]

\* Eras: 1 and 2 on the root, 1 takes the admin's right from Alice. Alice's era 3 on
\* 2, with 4 in it; her era 5 on the root can be applied by nobody.
Eras5 == [Plain EXCEPT
  !.commits = 1..5, !.parent = <<0, 0, 2, 3, 0>>, !.author = <<"bob", "bob", "alice", "bob", "alice">>,
  !.bad = {5}, !.eras = {3, 5},
  !.lists = (0 :> three) @@ (3 :> <<"s3">>) @@ (5 :> <<"s2">>),
  !.ballots = (0 :> {0, 2}) @@ (3 :> {0}) @@ (5 :> {0}),
  !.admins = [n \in 0..5 |-> IF n = 1 THEN {"bob"} ELSE {"alice", "bob"}],
  !.leaves = [f \in {"alice", "alice2", "bob"} |-> IF f = "bob" THEN "bob" ELSE "alice"],
  !.adds = [f \in {"alice", "alice2", "bob"} |-> 0],
  !.applied = {"alice"} \X {1, 2, 4},
  !.statements = {<<"bob", 3>>, <<"alice2", 5>>},
  !.provisional = 1 ]

\* All together: 1 sets a list, 3 on it; 2 beside 1; era 4 on 2, 5 in it.
All5 == [Plain EXCEPT
  !.commits = 1..5, !.parent = <<0, 0, 1, 2, 4>>, !.author = <<"alice", "bob", "bob", "alice", "bob">>,
  !.eras = {4},
  !.lists = (0 :> three) @@ (1 :> <<"s2", "s3", "s1">>) @@ (4 :> <<"s3">>),
  !.ballots = (0 :> {0, 2}) @@ (1 :> {0}) @@ (4 :> {0}),
  !.applied = ({"bob"} \X {1}) \cup ({"alice"} \X {2, 3, 5}),
  !.statements = {<<"bob", 4>>},
  !.provisional = 1 ]

\* A liar among three: two siblings, two ballots.
Liars2 == [Plain EXCEPT
  !.commits = 1..2, !.parent = <<0, 0>>, !.author = <<"alice", "alice">>,
  !.applied = {"bob"} \X (1..2) ]
\* The same with three ballots and lies in promises alone.
Liars3 == [Liars2 EXCEPT !.ballots = [l \in {0} |-> {0, 2, 3}], !.lies = {"promise"} ]

\* Progress: bad commit 1, good ones 2 and 3 above it, while one module may be gone.
Shed3 == [Plain EXCEPT
  !.commits = 1..3, !.parent = <<0, 0, 2>>, !.author = <<"alice", "alice", "alice">>,
  !.bad = {1}, !.applied = {"bob"} \X {2, 3},
  !.rounds = 12 ]
Shed2 == [Shed3 EXCEPT !.commits = 1..2, !.parent = <<0, 0>>, !.author = <<"alice", "alice">>,
  !.applied = {<<"bob", 2>>}, !.rounds = 12 ]
\* A list change 1 beside 2, 3 on it.
Change3 == [Plain EXCEPT
  !.commits = 1..3, !.parent = <<0, 0, 1>>, !.author = <<"alice", "alice", "alice">>,
  !.applied = {"bob"} \X {1, 2, 3},
  !.lists = (0 :> three) @@ (1 :> <<"s2", "s3", "s1">>),
  !.ballots = (0 :> {0, 2}) @@ (1 :> {0}),
  !.provisional = 1,
  !.rounds = 9 ]
Change2 == [Change3 EXCEPT !.commits = 1..2, !.parent = <<0, 0>>, !.author = <<"alice", "alice">>,
  !.applied = {"bob"} \X {1, 2}, !.ballots = (0 :> {0}) @@ (1 :> {0}), !.rounds = 6 ]
\* A list change 1 to modules that are not there, 3 on it.
Dead3 == [Plain EXCEPT
  !.commits = 1..3, !.parent = <<0, 0, 1>>, !.author = <<"alice", "alice", "alice">>,
  !.applied = {"bob"} \X {1, 2, 3},
  !.lists = (0 :> three) @@ (1 :> <<"s4", "s5", "s6">>), !.down = {"s4", "s5", "s6"},
  !.ballots = (0 :> {0, 2}) @@ (1 :> {0}),
  !.rounds = 9 ]
\* The same to modules that said ready, and are gone in calm.
Lapse2 == [Dead3 EXCEPT !.commits = 1..2, !.parent = <<0, 0>>, !.author = <<"alice", "alice">>,
  !.applied = {"bob"} \X {1, 2}, !.down = {}, !.gone = {"s4", "s5", "s6"} ]
=============================================================================
