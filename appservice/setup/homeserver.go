// Package setup makes an installation next to a homeserver: it reads the
// homeserver's configuration, writes the module's configuration and
// registration, makes the keys, and names the registration to the homeserver.
//
// It never overwrites what it did not write, and it never draws a token again
// that is in use.
package setup

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
)

// HomeserverConfig is what the module needs to know of a homeserver's
// configuration.
type HomeserverConfig struct {
	Path          string // absolute
	Software      homeserver.Software
	ServerName    string
	Address       string   // of the client API; empty if the configuration does not tell
	Registrations []string // absolute paths that are named already

	text []byte
	root *yaml.Node
}

// UnknownHomeserverError is a file that is no homeserver's configuration.
type UnknownHomeserverError struct {
	Path string
	Text string
}

// Error names the file and what is wrong with it.
func (e *UnknownHomeserverError) Error() string {
	return fmt.Sprintf("setup: %s: %s", e.Path, e.Text)
}

// ReadHomeserverConfig reads the configuration of Synapse or Dendrite.
func ReadHomeserverConfig(path string) (*HomeserverConfig, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("setup: %w", err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		var at *os.PathError
		if errors.As(err, &at) {
			err = at.Err // the path is said already
		}
		return nil, &UnknownHomeserverError{path, "cannot be read: " + err.Error()}
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, &UnknownHomeserverError{path, "is no valid YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")}
	}
	if doc.Kind == 0 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, &UnknownHomeserverError{path, "is no mapping of keys"}
	}
	hc := &HomeserverConfig{Path: path, text: text, root: doc.Content[0]}
	switch {
	case scalar(hc.root, "global", "server_name") != "":
		hc.Software = homeserver.Dendrite
		hc.ServerName = scalar(hc.root, "global", "server_name")
	case scalar(hc.root, "server_name") != "":
		hc.Software = homeserver.Synapse
		hc.ServerName = scalar(hc.root, "server_name")
		hc.Address = synapseAddress(hc.root)
	default:
		return nil, &UnknownHomeserverError{path, "names no server: neither server_name (Synapse) nor global.server_name (Dendrite)"}
	}
	if list := lookup(hc.root, hc.listKey()...); list != nil && list.Kind == yaml.SequenceNode {
		for _, item := range list.Content {
			hc.Registrations = append(hc.Registrations, hc.absolute(item.Value))
		}
	}
	return hc, nil
}

// listKey is where the configuration lists registrations.
func (hc *HomeserverConfig) listKey() []string {
	if hc.Software == homeserver.Dendrite {
		return []string{"app_service_api", "config_files"}
	}
	return []string{"app_service_config_files"}
}

// absolute resolves a path as the homeserver does: Dendrite against its
// configuration's folder, Synapse against the folder it runs in, which is the
// same in the usual installations.
func (hc *HomeserverConfig) absolute(path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(filepath.Dir(hc.Path), path)
}

// Names tells whether the configuration names a registration.
func (hc *HomeserverConfig) Names(registration string) bool {
	if slices.Contains(hc.Registrations, registration) {
		return true
	}
	want, err := os.Stat(registration)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(hc.Registrations, func(path string) bool {
		info, err := os.Stat(path)
		return err == nil && os.SameFile(info, want)
	})
}

// synapseAddress finds the client API among the listeners: plain HTTP on
// loopback if there is one, since the module runs next to the homeserver.
func synapseAddress(root *yaml.Node) string {
	listeners := lookup(root, "listeners")
	if listeners == nil || listeners.Kind != yaml.SequenceNode {
		return ""
	}
	best, bestScore := "", -1
	for _, l := range listeners.Content {
		resources := lookup(l, "resources")
		if resources == nil || !servesClients(resources) {
			continue
		}
		if path := scalar(l, "path"); path != "" {
			if bestScore < 1 {
				best, bestScore = "unix:"+path, 1
			}
			continue
		}
		port, err := strconv.ParseUint(scalar(l, "port"), 10, 16)
		if err != nil || port == 0 {
			continue
		}
		scheme, score := "http", 2
		if scalar(l, "tls") == "true" {
			scheme, score = "https", 0
		}
		host := "127.0.0.1"
		if binds := lookup(l, "bind_addresses"); binds != nil && binds.Kind == yaml.SequenceNode && len(binds.Content) > 0 {
			host = reachable(binds.Content)
		}
		if score > bestScore {
			best, bestScore = scheme+"://"+net.JoinHostPort(host, strconv.FormatUint(port, 10)), score
		}
	}
	return best
}

func servesClients(resources *yaml.Node) bool {
	return slices.ContainsFunc(resources.Content, func(r *yaml.Node) bool {
		names := lookup(r, "names")
		return names != nil && slices.ContainsFunc(names.Content, func(n *yaml.Node) bool { return n.Value == "client" })
	})
}

// reachable turns bind addresses into one that this machine can call.
func reachable(binds []*yaml.Node) string {
	for _, b := range binds {
		if b.Value == "127.0.0.1" || b.Value == "0.0.0.0" || b.Value == "::" || b.Value == "" {
			return "127.0.0.1"
		}
	}
	return binds[0].Value
}

// lookup finds a node by its keys.
func lookup(node *yaml.Node, keys ...string) *yaml.Node {
	for _, key := range keys {
		_, node = entry(node, key)
		if node == nil {
			return nil
		}
	}
	return node
}

func entry(node *yaml.Node, key string) (k, v *yaml.Node) {
	if node != nil && node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	if node == nil || node.Kind != yaml.MappingNode {
		return nil, nil
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		if node.Content[i].Value == key {
			return node.Content[i], node.Content[i+1]
		}
	}
	return nil, nil
}

func scalar(node *yaml.Node, keys ...string) string {
	if found := lookup(node, keys...); found != nil && found.Kind == yaml.ScalarNode && found.Tag != "!!null" {
		return found.Value
	}
	return ""
}

var errCannotEdit = errors.New("setup: the homeserver's configuration is written in a way that is not safe to edit")
