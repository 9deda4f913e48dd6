package rewrite

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
)

// Attachment is an encrypted file that a message names.
type Attachment struct {
	MXC  string          // as the client is told, see [Keyed]
	File json.RawMessage // the EncryptedFile, with its key (Matrix specification, "Sending encrypted attachments")
	MIME string          // as the sender says
}

// keyedMark stands in addresses between a file's and the hash of its key.
const keyedMark = "_mls_"

// Keyed is an address for a file together with one key, which the homeserver does
// not know. The same file has another address with another key: a member who
// claims to have the key of somebody else's file makes that one no less readable.
func Keyed(mxc string, file json.RawMessage) string {
	sum := sha256.Sum256(file)
	return mxc + keyedMark + hex.EncodeToString(sum[:16])
}

// Unkeyed is the address that the homeserver knows, of an address or the last
// part of one.
func Unkeyed(mxc string) string {
	i := strings.LastIndex(mxc, keyedMark)
	if i < 0 {
		return mxc
	}
	if sum, err := hex.DecodeString(mxc[i+len(keyedMark):]); err != nil || len(sum) != 16 {
		return mxc
	}
	return mxc[:i]
}

// Detach puts the addresses of a message's encrypted files where a client
// without encryption looks for them, and returns the files.
func Detach(content json.RawMessage) (json.RawMessage, []Attachment) {
	f, ok := parse(content)
	if !ok {
		return content, nil
	}
	var all []Attachment
	detach(f, &all)
	if len(all) == 0 {
		return content, nil
	}
	return f.raw(), all
}

func detach(f fields, all *[]Attachment) {
	info := f.object("info")
	move := func(in fields, from, to, mime string) bool {
		file := in.object(from)
		mxc := file.text("url")
		if mxc == "" || !file.has("key") {
			return false
		}
		mxc = Keyed(mxc, in[from])
		*all = append(*all, Attachment{MXC: mxc, File: in[from], MIME: mime})
		in[to] = quote(mxc)
		delete(in, from)
		return true
	}
	move(f, "file", "url", info.text("mimetype"))
	if info != nil && move(info, "thumbnail_file", "thumbnail_url", info.object("thumbnail_info").text("mimetype")) {
		f["info"] = info.raw()
	}
	if fresh := f.object("m.new_content"); fresh != nil {
		before := len(*all)
		detach(fresh, all)
		if len(*all) > before {
			f["m.new_content"] = fresh.raw()
		}
	}
}

// Attach does the opposite for a message that a client sends: files that find
// knows as encrypted go with their keys.
func Attach(content json.RawMessage, find func(mxc string) (file json.RawMessage, ok bool)) json.RawMessage {
	f, ok := parse(content)
	if !ok {
		return content
	}
	if !attach(f, find) {
		return content
	}
	return f.raw()
}

func attach(f fields, find func(string) (json.RawMessage, bool)) (changed bool) {
	move := func(in fields, from, to string) bool {
		mxc := in.text(from)
		if mxc == "" {
			return false
		}
		file, ok := find(mxc)
		if !ok {
			return false
		}
		in[to] = file
		delete(in, from)
		return true
	}
	changed = move(f, "url", "file")
	if info := f.object("info"); info != nil && move(info, "thumbnail_url", "thumbnail_file") {
		f["info"], changed = info.raw(), true
	}
	if fresh := f.object("m.new_content"); fresh != nil && attach(fresh, find) {
		f["m.new_content"], changed = fresh.raw(), true
	}
	return changed
}

// Encrypted replaces the encrypted files that a message for others names: its own,
// its thumbnail's, those of an edit. The function returns the EncryptedFile to take,
// or an error, which ends it.
func Encrypted(content json.RawMessage, replace func(file json.RawMessage) (json.RawMessage, error)) (json.RawMessage, error) {
	f, ok := parse(content)
	if !ok {
		return content, nil
	}
	changed, err := replaceFiles(f, replace)
	if err != nil || !changed {
		return content, err
	}
	return f.raw(), nil
}

func replaceFiles(f fields, replace func(json.RawMessage) (json.RawMessage, error)) (changed bool, err error) {
	in := func(f fields, key string) (bool, error) {
		if f.object(key).text("url") == "" {
			return false, nil
		}
		to, err := replace(f[key])
		if err != nil || string(to) == string(f[key]) {
			return false, err
		}
		f[key] = to
		return true, nil
	}
	if changed, err = in(f, "file"); err != nil {
		return false, err
	}
	if info := f.object("info"); info != nil {
		switch ok, err := in(info, "thumbnail_file"); {
		case err != nil:
			return false, err
		case ok:
			f["info"], changed = info.raw(), true
		}
	}
	if fresh := f.object("m.new_content"); fresh != nil {
		switch ok, err := replaceFiles(fresh, replace); {
		case err != nil:
			return false, err
		case ok:
			f["m.new_content"], changed = fresh.raw(), true
		}
	}
	return changed, nil
}

// maxDepth bounds how deep Publish looks.
const maxDepth = 16

// Publish replaces media addresses, wherever they stand in a JSON value. The
// function returns the address to take, or an error, which ends it.
func Publish(raw json.RawMessage, replace func(mxc string) (string, error)) (json.RawMessage, error) {
	return publish(raw, replace, maxDepth)
}

func publish(raw json.RawMessage, replace func(string) (string, error), depth int) (json.RawMessage, error) {
	if depth == 0 {
		return raw, nil
	}
	var s string
	if json.Unmarshal(raw, &s) == nil {
		if len(s) < 7 || s[:6] != "mxc://" {
			return raw, nil
		}
		to, err := replace(s)
		if err != nil || to == s {
			return raw, err
		}
		return quote(to), nil
	}
	if f, ok := parse(raw); ok {
		changed := false
		for key, value := range f {
			out, err := publish(value, replace, depth-1)
			if err != nil {
				return nil, err
			}
			if string(out) != string(value) {
				f[key], changed = out, true
			}
		}
		if !changed {
			return raw, nil
		}
		return f.raw(), nil
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) == nil && len(list) > 0 {
		changed := false
		for i, value := range list {
			out, err := publish(value, replace, depth-1)
			if err != nil {
				return nil, err
			}
			if string(out) != string(value) {
				list[i], changed = out, true
			}
		}
		if changed {
			return json.Marshal(list)
		}
	}
	return raw, nil
}
