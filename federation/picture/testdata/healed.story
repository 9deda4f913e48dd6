# A room of three servers. The third is cut off; its side goes on without a
# majority. The other side makes its commits final; when the two meet again, the
# third server's branch has lost. Dave's phone on it has not come over yet.

room list=(one,two,three) admins=(@alice:one.example) leaves=(@alice:one.example,@bob:two.example,@carol:three.example,@dave:three.example)
----
head=root safe=root final=root era=0@root

commit name=c1 on=root by=@alice:one.example
----
save

accept ref=c1 by=one ballot=0.0
----
save
head root -> c1 (fork root)

vote ref=c1 by=one ballot=0.0 proofs=(c1:@bob:two.example)
----
save

vote ref=c1 by=two ballot=0.0 proofs=(c1:@bob:two.example)
----
save
final c1

# Two commits at once, and a split.
commit name=left on=c1 by=@alice:one.example remove=(@bob:two.example) add=(@erin:two.example)
----
save

commit name=right on=c1 by=@carol:three.example add=(@frank:three.example)
----
save

accept ref=right by=three provisional
----
save
head c1 -> right (fork c1)

applied ref=right leaf=@dave:three.example
----
save

commit name=right2 on=right by=@dave:three.example
----
save

accept ref=right2 by=three provisional
----
save
head right -> right2 (fork right)

accept ref=left by=one ballot=0.0
----
save
head right2 -> left (fork c1)

commit name=left2 on=left by=@erin:two.example
----
save

accept ref=left2 by=one ballot=0.0
----
save
head left -> left2 (fork left)

applied ref=left leaf=@alice:one.example
----
save

vote ref=left by=two ballot=0.0 proofs=(left:@carol:three.example)
----
save

vote ref=left by=one ballot=0.0 proofs=(left:@carol:three.example)
----
save
final left

# The first server is silent for a while: the second takes over.
promise list=root by=two ballot=1.1 last=left@0.0 as=p2
----
save

promise list=root by=three ballot=1.1 as=p3
----
save

commit name=x on=left by=@carol:three.example add=(@frank:three.example)
----
save

accept ref=x by=two ballot=1.1 promises=(p2,p3)
----
save
head left2 -> x (fork left)

commit name=y on=x by=@alice:one.example
----
save

accept ref=y by=two ballot=1.1 promises=(p2,p3)
----
save
head x -> y (fork x)

vote ref=x by=two ballot=1.1 proofs=(x:@alice:one.example)
----
save

vote ref=x by=three ballot=1.1 proofs=(x:@alice:one.example)
----
save
final x

commit name=z on=y by=@carol:three.example
----
save

commit name=z2 on=y by=@erin:two.example
----
save

accept ref=z by=two ballot=1.1 promises=(p2,p3)
----
save
head y -> z (fork y)

state
----
head=z safe=z final=x era=0@root
  c1 on root: final
  left on c1: final
  right on c1: displaced
  x on left: final
  right2 on right: displaced
  left2 on left: displaced
  y on x: votable
  z2 on y: waiting
  z on y: accepted
