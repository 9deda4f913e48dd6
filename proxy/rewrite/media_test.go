package rewrite

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestDetachAndAttachAreOpposites(t *testing.T) {
	sealed := `{"body":"x","file":{"url":"mxc://h/a","key":{"k":"1"},"v":"v2"},"info":{"mimetype":"image/png","thumbnail_file":{"url":"mxc://h/t","key":{"k":"2"}},"thumbnail_info":{"mimetype":"image/jpeg"}},"m.new_content":{"file":{"url":"mxc://h/n","key":{"k":"3"}}}}`
	open, files := Detach(json.RawMessage(sealed))
	at := func(mxc, key string) string {
		return Keyed(mxc, json.RawMessage(`{"url":"`+mxc+`","key":{"k":"`+key+`"}`+map[bool]string{true: `,"v":"v2"`}[key == "1"]+`}`))
	}
	file, thumbnail, fresh := at("mxc://h/a", "1"), at("mxc://h/t", "2"), at("mxc://h/n", "3")
	if want := `{"body":"x","info":{"mimetype":"image/png","thumbnail_info":{"mimetype":"image/jpeg"},"thumbnail_url":"` + thumbnail + `"},"m.new_content":{"url":"` + fresh + `"},"url":"` + file + `"}`; string(open) != want {
		t.Errorf("detached\n%s, want\n%s", open, want)
	}
	keys := map[string]json.RawMessage{}
	types := map[string]string{}
	for _, f := range files {
		keys[f.MXC], types[f.MXC] = f.File, f.MIME
	}
	if len(files) != 3 || types[file] != "image/png" || types[thumbnail] != "image/jpeg" {
		t.Errorf("files %v", types)
	}
	again := Attach(open, func(mxc string) (json.RawMessage, bool) { f, ok := keys[mxc]; return f, ok })
	var got, want any
	if json.Unmarshal(again, &got) != nil || json.Unmarshal([]byte(sealed), &want) != nil {
		t.Fatal("not JSON")
	}
	a, _ := json.Marshal(got)
	b, _ := json.Marshal(want)
	if string(a) != string(b) {
		t.Errorf("attached\n%s, want\n%s", a, b)
	}
}

func TestAnAddressGoesWithOneKey(t *testing.T) {
	one, two := Keyed("mxc://h/a", json.RawMessage(`{"k":1}`)), Keyed("mxc://h/a", json.RawMessage(`{"k":2}`))
	if one == two || Keyed("mxc://h/a", json.RawMessage(`{"k":1}`)) != one {
		t.Errorf("the addresses are %s and %s", one, two)
	}
	for in, want := range map[string]string{
		one: "mxc://h/a", two: "mxc://h/a", "mxc://h/a": "mxc://h/a", "mxc://h/a_mls_": "mxc://h/a_mls_", "mxc://h/a_mls_00": "mxc://h/a_mls_00",
		"a_mls_" + strings.Repeat("0", 32): "a", "a_mls_" + strings.Repeat("x", 32): "a_mls_" + strings.Repeat("x", 32), "": "",
		"a_mls_b_mls_" + strings.Repeat("0", 32): "a_mls_b",
	} {
		if got := Unkeyed(in); got != want {
			t.Errorf("%s is %s, want %s", in, got, want)
		}
	}
}

func TestEncryptedFilesAreReplacedWhereMessagesNameThem(t *testing.T) {
	in := `{"body":"x","file":{"url":"a"},"info":{"thumbnail_file":{"url":"t"},"w":1},"m.new_content":{"file":{"url":"n"},"info":{"thumbnail_file":{"url":"nt"}}}}`
	replace := func(file json.RawMessage) (json.RawMessage, error) {
		if strings.Contains(string(file), "bad") {
			return nil, errors.New("no")
		}
		return json.RawMessage(strings.Replace(string(file), `"url":"`, `"url":"new `, 1)), nil
	}
	got, err := Encrypted(json.RawMessage(in), replace)
	if want := strings.ReplaceAll(in, `"url":"`, `"url":"new `); err != nil || string(got) != want {
		t.Errorf("got %s, %v\nwant %s", got, err, want)
	}
	for _, place := range []string{"a", "t", "n", "nt"} {
		if _, err := Encrypted(json.RawMessage(strings.Replace(in, `"`+place+`"`, `"bad"`, 1)), replace); err == nil {
			t.Errorf("an error at %s is forgotten", place)
		}
	}
	for _, same := range []string{`{ "url":"mxc://h/a"}`, `{"file":"x"}`, `{"file":{"key":1}}`, `{"info":null}`, `[1]`, `nonsense`} {
		if got, err := Encrypted(json.RawMessage(same), replace); err != nil || string(got) != same {
			t.Errorf("%s became %s, %v", same, got, err)
		}
	}
}

func TestContentsWithoutEncryptedFilesStayAsTheyAre(t *testing.T) {
	for _, content := range []string{`{"body":"x"}`, `{ "url":"mxc://h/a"}`, `{"file":"x"}`, `{"file":{"url":"mxc://h/a"}}`, `{"info":null}`, `[1]`, `nonsense`} {
		if got, files := Detach(json.RawMessage(content)); string(got) != content || files != nil {
			t.Errorf("Detach(%s) = %s", content, got)
		}
		if got := Attach(json.RawMessage(content), func(string) (json.RawMessage, bool) { return nil, false }); string(got) != content {
			t.Errorf("Attach(%s) = %s", content, got)
		}
	}
}

func TestPublishFindsAddressesAnywhere(t *testing.T) {
	replace := func(mxc string) (string, error) {
		if mxc == "mxc://h/bad" {
			return "", errors.New("no")
		}
		return strings.ReplaceAll(mxc, "mxc://h/a", "mxc://h/b"), nil
	}
	in := `{"url":"mxc://h/a","list":[1,{"avatar":"mxc://h/a"},"text mxc://h/a"],"other":"mxc://x/y","n":1e400}`
	got, err := Publish(json.RawMessage(in), replace)
	if want := `{"list":[1,{"avatar":"mxc://h/b"},"text mxc://h/a"],"n":1e400,"other":"mxc://x/y","url":"mxc://h/b"}`; err != nil || string(got) != want {
		t.Errorf("got %s, %v\nwant %s", got, err, want)
	}
	if got, err = Publish(json.RawMessage(`{ "a" : [ ] }`), replace); err != nil || string(got) != `{ "a" : [ ] }` {
		t.Errorf("without addresses: %s, %v", got, err)
	}
	if _, err := Publish(json.RawMessage(`{"a":["mxc://h/bad"]}`), replace); err == nil {
		t.Error("an error is forgotten")
	}
	deep := strings.Repeat(`[`, 5000) + strings.Repeat(`]`, 5000)
	if got, err := Publish(json.RawMessage(deep), replace); err != nil || string(got) != deep {
		t.Errorf("deep: %v", err)
	}
}
