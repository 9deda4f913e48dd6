package federation

// rule is a rule of the protocol that a machine can be told to leave out. Only
// this package's tests can do so: they show that a property breaks without it.
type rule uint64

const (
	rulePromisedValue   rule = 1 << iota // a takeover extends the highest vote its promises report
	ruleHighestPromised                  // a module votes in no ballot below its promise
	ruleDeepestTie                       // of two last votes in one ballot the deeper one binds
	ruleExtendVote                       // a vote extends the last one in its ballot
	rulePersist                          // what is sent was saved before (kept by the driver)
	ruleListFinal                        // a new list serves only once its change is final
	ruleListStop                         // nothing is accepted above a list change before that
	ruleReaccept                         // a new owner first accepts its head again
	ruleChainCover                       // an accept covers what lies below it
	ruleApplied                          // only what another member applied is voted for
	ruleSinceParent                      // the leaf that vouches was there before the commit
	ruleNotAuthor                        // the one who vouches is not the author
	ruleCutDoubt                         // a commit in doubt is not accepted again
	ruleEraFirst                         // the fork choice picks the era first
	ruleEraVouched                       // an era counts only once a member vouched for it
	ruleEraAdminFinal                    // who opens an era is an admin at the newest final
	ruleFinalFirst                       // the subtree with a final commit comes first
	ruleBallotFirst                      // a ballot comes before a provisional accept
	ruleQuorumPromises                   // a ballot needs the promises of a majority
	ruleVoteQuorum                       // a final needs the votes of a majority
	ruleProvisional                      // provisional accepts when no majority answers
	ruleTakeover                         // the next in rank takes over
	ruleNextRound                        // the owner itself opens a round on doubt
	ruleEquivocatorLast                  // accepts that prove a lie rank last
	ruleOldestUser                       // the user whose last commit is oldest comes first
	ruleWindow                           // a side without finals stops after window commits
	ruleAskTwice                         // who was not answered twice does not ask again
	rulePinnedPromises                   // a ballot's accepts all show the promises it opened with
	ruleBallotBase                       // nobody votes below what the ballot had to extend
)

// keeps reports whether a rule is in force: always, but in this package's tests.
func (m *Machine) keeps(r rule) bool { return m.cfg.without&r == 0 }
