package mls

// Limits bounds what a peer can make us hold or do. A zero field means its
// default.
type Limits struct {
	MaxMessageSize     int // bytes of one ratchet tree, and of an epoch's cached proposals; default 16 MiB. An MLSMessage may have 16 MiB whatever this says
	MaxMembers         int // leaves of a ratchet tree; default 20,000
	MaxForward         int // generations one message may skip; default 1,000
	MaxForwardTotal    int // generations one sender may skip in an epoch; default 10,000
	MaxSkipped         int // unused message keys kept for each sender and content type; default 256
	MaxSkippedTotal    int // unused message keys kept for the group's epoch; default 10,000
	MaxProposals       int // proposals in one Commit; default 1,000. The one that founds a group's successor may have MaxMembers
	MaxSenderProposals int // cached proposals of one member in an epoch, and of all who ask to be added; default 10. External senders are bound by MaxCachedProposals only
	MaxCachedProposals int // cached proposals in an epoch; default 500
	MaxPSKs            int // PSKs in one Commit or Welcome; default 32
	MaxExtensionSize   int // bytes of one extension, the ratchet_tree extension aside; default 64 KiB
	MaxCredentialSize  int // bytes of one credential; default 8 KiB

	MaxLifetime   int64 // seconds between not_before and not_after of a LeafNode; default 84 days and one hour
	ClockSkew     int64 // seconds a not_before may lie in the future; default one hour
	MaxAEADInputs int64 // messages one sender may protect in an epoch; default 2^32-1, the counter's end
}

// Sizes that decoders use where no Config is at hand.
const (
	defaultMaxMessageSize   = 16 << 20
	defaultMaxExtensionSize = 64 << 10
	defaultMaxCredential    = 8 << 10
)

var defaultLimits = Limits{
	MaxMessageSize:     defaultMaxMessageSize,
	MaxMembers:         20_000,
	MaxForward:         1_000,
	MaxForwardTotal:    10_000,
	MaxSkipped:         256,
	MaxSkippedTotal:    10_000,
	MaxProposals:       1_000,
	MaxSenderProposals: 10,
	MaxCachedProposals: 500,
	MaxPSKs:            32,
	MaxExtensionSize:   defaultMaxExtensionSize,
	MaxCredentialSize:  defaultMaxCredential,
	MaxLifetime:        84*24*3600 + 3600,
	ClockSkew:          3600,
	MaxAEADInputs:      1<<32 - 1,
}

// withDefaults fills in the zero fields.
func (l Limits) withDefaults() Limits {
	for _, f := range []struct{ v, d *int }{
		{&l.MaxMessageSize, &defaultLimits.MaxMessageSize},
		{&l.MaxMembers, &defaultLimits.MaxMembers},
		{&l.MaxForward, &defaultLimits.MaxForward},
		{&l.MaxForwardTotal, &defaultLimits.MaxForwardTotal},
		{&l.MaxSkipped, &defaultLimits.MaxSkipped},
		{&l.MaxSkippedTotal, &defaultLimits.MaxSkippedTotal},
		{&l.MaxProposals, &defaultLimits.MaxProposals},
		{&l.MaxSenderProposals, &defaultLimits.MaxSenderProposals},
		{&l.MaxCachedProposals, &defaultLimits.MaxCachedProposals},
		{&l.MaxPSKs, &defaultLimits.MaxPSKs},
		{&l.MaxExtensionSize, &defaultLimits.MaxExtensionSize},
		{&l.MaxCredentialSize, &defaultLimits.MaxCredentialSize},
	} {
		if *f.v <= 0 {
			*f.v = *f.d
		}
	}
	for _, f := range []struct{ v, d *int64 }{
		{&l.MaxLifetime, &defaultLimits.MaxLifetime},
		{&l.ClockSkew, &defaultLimits.ClockSkew},
		{&l.MaxAEADInputs, &defaultLimits.MaxAEADInputs},
	} {
		if *f.v <= 0 {
			*f.v = *f.d
		}
	}
	return l
}
