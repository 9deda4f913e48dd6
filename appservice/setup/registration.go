package setup

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	mas "maunium.net/go/mautrix/appservice"

	"gopkg.in/yaml.v3"

	"github.com/matrix-mls/matrix-mls/appservice/config"
	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
)

// RegistrationMode lets the homeserver's group read the file, which holds the
// two tokens, and nobody else.
const RegistrationMode os.FileMode = 0o640

// Token draws a secret shared with the homeserver.
func Token() (string, error) {
	var raw [36]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return "", fmt.Errorf("setup: drawing a token: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(raw[:]), nil
}

// Registration is what the homeserver must be told for a configuration.
func Registration(cfg *config.Config) *mas.Registration {
	server := regexp.QuoteMeta(cfg.Homeserver.Domain)
	bot := cfg.AppService.Bot.Username
	users := []string{"^@" + regexp.QuoteMeta(bot) + ":" + server + "$"}
	if bot == "_mls_bot" {
		users = append(users, "^@_mls_.*:"+server+"$")
	}
	return homeserver.NewRegistration(cfg.AppService.ID, cfg.AppService.Address, bot,
		cfg.AppService.ASToken, cfg.AppService.HSToken, users)
}

// LoadRegistration reads a registration. A file that does not exist is nil
// without an error.
func LoadRegistration(path string) (*mas.Registration, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("setup: cannot read the registration: %w", err)
	}
	reg := new(mas.Registration)
	if err := yaml.Unmarshal(data, reg); err != nil {
		return nil, fmt.Errorf("setup: the registration %s is no valid YAML", path)
	}
	return reg, nil
}

// Difference is a key on which a registration and the configuration disagree.
// Tokens are never shown.
type Difference struct {
	Key, Have, Want string
}

// String says what the registration has, and what it should have.
func (d Difference) String() string {
	switch {
	case d.Have == "":
		return d.Key + " is empty, should be " + d.Want
	case strings.HasPrefix(d.Have, uncovered):
		return d.Key + " " + d.Have + ", should be " + d.Want
	}
	return d.Key + " is " + d.Have + ", should be " + d.Want
}

// uncovered begins what a registration has whose names are not the bot's.
const uncovered = "does not cover "

// Compare finds where a registration differs from what the configuration asks
// for.
func Compare(have *mas.Registration, cfg *config.Config) (out []Difference) {
	want := Registration(cfg)
	add := func(key, h, w string) {
		if h != w {
			out = append(out, Difference{key, h, w})
		}
	}
	add("id", have.ID, want.ID)
	add("url", have.URL, want.URL)
	add("sender_localpart", have.SenderLocalpart, want.SenderLocalpart)
	if have.AppToken != want.AppToken {
		out = append(out, Difference{"as_token", "[another secret]", "[the configuration's]"})
	}
	if have.ServerToken != want.ServerToken {
		out = append(out, Difference{"hs_token", "[another secret]", "[the configuration's]"})
	}
	add("rate_limited", limited(have), limited(want))
	covered := false
	for _, ns := range have.Namespaces.UserIDs {
		if re, err := regexp.Compile(ns.Regex); err == nil && re.MatchString(string(cfg.BotUserID())) {
			covered = true
		}
	}
	if !covered {
		out = append(out, Difference{"namespaces.users", uncovered + string(cfg.BotUserID()), want.Namespaces.UserIDs[0].Regex})
	}
	return out
}

func limited(reg *mas.Registration) string {
	if reg.RateLimited == nil {
		return "true (not set)"
	}
	return fmt.Sprint(*reg.RateLimited)
}

// writeRegistration writes the file in one step.
func writeRegistration(path string, reg *mas.Registration) error {
	data, err := yaml.Marshal(reg)
	if err != nil {
		return fmt.Errorf("setup: writing the registration: %w", err)
	}
	text := append([]byte("# Written by matrix-mls. `matrix-mls -g` writes it again and keeps the tokens.\n"), data...)
	if err := config.WriteFile(path, text, RegistrationMode); err != nil {
		return fmt.Errorf("setup: cannot write the registration: %w", err)
	}
	return nil
}
