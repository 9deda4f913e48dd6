// Package e2e puts everything together on real homeservers: a [World] is a set of federated Synapse and Dendrite
// servers with the module beside each, and a [Device] is one device of a user, driven through the SDK. The tests here
// and the demo in lab/demo are stories told with the two.
package e2e
