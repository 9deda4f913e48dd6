// Package config reads the module's configuration: one YAML file, environment
// overrides, and refusals that name the key and the line.
package config

import (
	"time"

	"go.mau.fi/zeroconfig"
)

// Config is the whole configuration. config.example.yaml says what each key
// does and holds its default.
type Config struct {
	Homeserver Homeserver        `yaml:"homeserver"`
	AppService AppService        `yaml:"appservice"`
	Database   Database          `yaml:"database"`
	Rooms      Rooms             `yaml:"rooms"`
	Limits     Limits            `yaml:"limits"`
	Outbox     Outbox            `yaml:"outbox"`
	Retention  Retention         `yaml:"retention"`
	Metrics    Metrics           `yaml:"metrics"`
	Admin      Admin             `yaml:"admin"`
	Logging    zeroconfig.Config `yaml:"logging"`
}

// Homeserver says which homeserver the module belongs to.
type Homeserver struct {
	Address        string   `yaml:"address"`
	Domain         string   `yaml:"domain"`
	Software       string   `yaml:"software"`
	RequestTimeout Duration `yaml:"request_timeout"`
}

// AppService is the module as an application service.
type AppService struct {
	Address  string   `yaml:"address"`
	Hostname string   `yaml:"hostname"`
	Port     uint16   `yaml:"port"`
	ID       string   `yaml:"id"`
	Bot      Bot      `yaml:"bot"`
	ASToken  string   `yaml:"as_token"`
	HSToken  string   `yaml:"hs_token"`
	Admins   []string `yaml:"admins"`
}

// Bot is the module's own account.
type Bot struct {
	Username    string `yaml:"username"`
	Displayname string `yaml:"displayname"`
	DeviceID    string `yaml:"device_id"`
}

// Database says where the module keeps what it must not forget.
type Database struct {
	Type         string `yaml:"type"`
	URI          string `yaml:"uri"`
	MaxOpenConns int    `yaml:"max_open_conns"`
}

// Rooms says which rooms are served and how.
type Rooms struct {
	InviteFrom      []string `yaml:"invite_from"`
	Maximum         int      `yaml:"maximum"`
	SnapshotCommits int      `yaml:"snapshot_commits"`
	SnapshotBytes   int64    `yaml:"snapshot_bytes"`
	GapCheck        Duration `yaml:"gap_check"`
	InclusionWait   Duration `yaml:"inclusion_wait"`
	// ExperimentalSuites lets the module follow groups with post-quantum suites,
	// whose numbers will change.
	ExperimentalSuites bool `yaml:"experimental_suites"`
}

// Limits bounds what comes from outside.
type Limits struct {
	TransactionBytes         int64    `yaml:"transaction_bytes"`
	MediaBytes               int64    `yaml:"media_bytes"`
	Leaves                   int      `yaml:"leaves"`
	CommitProposals          int      `yaml:"commit_proposals"`
	CachedProposalsPerSender int      `yaml:"cached_proposals_per_sender"`
	CachedProposalsPerEpoch  int      `yaml:"cached_proposals_per_epoch"`
	WaitingPerRoom           int      `yaml:"waiting_per_room"`
	WaitingTotal             int      `yaml:"waiting_total"`
	WaitingTime              Duration `yaml:"waiting_time"`
}

// Outbox says how sending goes.
type Outbox struct {
	Parallel       int      `yaml:"parallel"`
	Backoff        Duration `yaml:"backoff"`
	BackoffMaximum Duration `yaml:"backoff_maximum"`
}

// Retention says how long finished work is kept.
type Retention struct {
	RawEvents Duration `yaml:"raw_events"`
	EventIDs  Duration `yaml:"event_ids"`
	Sent      Duration `yaml:"sent"`
	Refusals  int      `yaml:"refusals"`
}

// Metrics says whether and where metrics are served.
type Metrics struct {
	Enabled bool   `yaml:"enabled"`
	Listen  string `yaml:"listen"`
}

// Admin says whether there are pages for admins.
type Admin struct {
	Token string `yaml:"token"`
}

// Duration is a time.Duration written as "10s", "5m" or "24h".
type Duration time.Duration

// UnmarshalText parses a duration.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}

// MarshalText writes a duration as it is read.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// D is the duration as the standard library has it.
func (d Duration) D() time.Duration { return time.Duration(d) }
