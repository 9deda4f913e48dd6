package rooms

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Bounds of the JSON this package reads. Matrix limits an event to 65,536
// bytes; device keys come from another homeserver and have no limit of their
// own, so they get the same one.
const (
	maxJSONSize  = 65536 // bytes of one JSON text
	maxJSONDepth = 32    // nested arrays and objects
	maxJSONNodes = 16384 // values of one JSON text
	maxNumberLen = 32    // characters of one number
	maxSafeInt   = 1<<53 - 1
)

// numbers tells which numbers a JSON text may hold.
type numbers bool

const (
	canonicalNumbers numbers = false // integers of canonical JSON, |n| < 2^53
	anyNumbers       numbers = true  // what a float64 holds: the inside of a ciphertext never passed a homeserver's check
)

// jsonKind is the kind of a JSON value.
type jsonKind uint8

const (
	jsonNull jsonKind = iota
	jsonBool
	jsonNumber
	jsonString
	jsonArray
	jsonObject
)

func (k jsonKind) String() string {
	return [...]string{"null", "boolean", "number", "string", "array", "object"}[k]
}

// jsonValue is a parsed JSON value that knows its source text.
type jsonValue struct {
	kind jsonKind
	raw  []byte // as received
	str  string // decoded string
	keys []string
	vals []jsonValue
}

// member returns the value of a key of an object, or nil.
func (v *jsonValue) member(key string) *jsonValue {
	if v.kind != jsonObject {
		return nil
	}
	for i, k := range v.keys {
		if k == key {
			return &v.vals[i]
		}
	}
	return nil
}

// jsonParser reads one JSON text strictly: RFC 8259 grammar, valid UTF-8, no
// duplicate keys, bounded depth, size and numbers.
type jsonParser struct {
	in    []byte
	pos   int
	depth int
	nodes int
	nums  numbers
}

// parseJSON parses a whole JSON text. The error is a [Refusal] with
// [RuleHostileJSON] or [RuleEventTooLarge].
func parseJSON(raw []byte, nums numbers) (*jsonValue, error) {
	if len(raw) > maxJSONSize {
		return nil, refuse(RuleEventTooLarge, "", "JSON of %d bytes, at most %d are read", len(raw), maxJSONSize)
	}
	if !utf8.Valid(raw) {
		return nil, refuse(RuleHostileJSON, "", "invalid UTF-8")
	}
	p := &jsonParser{in: raw, nums: nums}
	v, err := p.value()
	if err == nil {
		p.space()
		if p.pos != len(p.in) {
			err = p.errorf("text after the value")
		}
	}
	if err != nil {
		return nil, &Refusal{Rule: RuleHostileJSON, Err: err}
	}
	return &v, nil
}

func (p *jsonParser) errorf(format string, args ...any) error {
	return fmt.Errorf("byte %d: %s", p.pos, fmt.Sprintf(format, args...))
}

func (p *jsonParser) space() {
	for p.pos < len(p.in) {
		switch p.in[p.pos] {
		case ' ', '\t', '\n', '\r':
			p.pos++
		default:
			return
		}
	}
}

// peek skips whitespace and returns the next byte, 0 at the end.
func (p *jsonParser) peek() byte {
	p.space()
	if p.pos < len(p.in) {
		return p.in[p.pos]
	}
	return 0
}

func (p *jsonParser) value() (jsonValue, error) {
	if p.nodes++; p.nodes > maxJSONNodes {
		return jsonValue{}, p.errorf("more than %d values", maxJSONNodes)
	}
	c := p.peek()
	start := p.pos
	v := jsonValue{}
	var err error
	switch {
	case c == '{':
		v, err = p.object()
	case c == '[':
		v, err = p.array()
	case c == '"':
		v.kind = jsonString
		v.str, err = p.string()
	case c == '-' || c >= '0' && c <= '9':
		v.kind = jsonNumber
		err = p.number()
	default:
		for _, lit := range [...]string{"null", "true", "false"} {
			if strings.HasPrefix(string(p.in[p.pos:min(len(p.in), p.pos+5)]), lit) {
				p.pos += len(lit)
				if lit != "null" {
					v.kind = jsonBool
				}
				v.raw = p.in[start:p.pos]
				return v, nil
			}
		}
		if c == 0 && p.pos == len(p.in) {
			return v, p.errorf("text ends within a value")
		}
		return v, p.errorf("no value begins here")
	}
	v.raw = p.in[start:p.pos]
	return v, err
}

func (p *jsonParser) object() (jsonValue, error) {
	v := jsonValue{kind: jsonObject}
	if p.depth++; p.depth > maxJSONDepth {
		return v, p.errorf("nested deeper than %d", maxJSONDepth)
	}
	defer func() { p.depth-- }()
	p.pos++
	if p.peek() == '}' {
		p.pos++
		return v, nil
	}
	seen := make(map[string]struct{})
	for {
		if p.peek() != '"' {
			return v, p.errorf("object key is not a string")
		}
		key, err := p.string()
		if err != nil {
			return v, err
		}
		if _, dup := seen[key]; dup {
			return v, p.errorf("duplicate key %.40q", key)
		}
		seen[key] = struct{}{}
		if p.peek() != ':' {
			return v, p.errorf("no colon after object key")
		}
		p.pos++
		val, err := p.value()
		if err != nil {
			return v, err
		}
		v.keys = append(v.keys, key)
		v.vals = append(v.vals, val)
		switch p.peek() {
		case ',':
			p.pos++
		case '}':
			p.pos++
			return v, nil
		default:
			return v, p.errorf("object is not closed")
		}
	}
}

func (p *jsonParser) array() (jsonValue, error) {
	v := jsonValue{kind: jsonArray}
	if p.depth++; p.depth > maxJSONDepth {
		return v, p.errorf("nested deeper than %d", maxJSONDepth)
	}
	defer func() { p.depth-- }()
	p.pos++
	if p.peek() == ']' {
		p.pos++
		return v, nil
	}
	for {
		val, err := p.value()
		if err != nil {
			return v, err
		}
		v.vals = append(v.vals, val)
		switch p.peek() {
		case ',':
			p.pos++
		case ']':
			p.pos++
			return v, nil
		default:
			return v, p.errorf("array is not closed")
		}
	}
}

// string reads a string. Escapes that name half a surrogate pair are refused:
// decoders differ on what they mean.
func (p *jsonParser) string() (string, error) {
	p.pos++
	start := p.pos
	for i := p.pos; i < len(p.in); i++ {
		switch c := p.in[i]; {
		case c == '"': // no escapes: the common case
			p.pos = i + 1
			return string(p.in[start:i]), nil
		case c < 0x20:
			p.pos = i
			return "", p.errorf("control character in a string")
		case c == '\\':
			return p.escaped(start, i)
		}
	}
	return "", p.errorf("string is not closed")
}

func (p *jsonParser) escaped(start, i int) (string, error) {
	var b strings.Builder
	b.Write(p.in[start:i])
	for i < len(p.in) {
		c := p.in[i]
		switch {
		case c == '"':
			p.pos = i + 1
			return b.String(), nil
		case c < 0x20:
			p.pos = i
			return "", p.errorf("control character in a string")
		case c != '\\':
			b.WriteByte(c)
			i++
			continue
		}
		p.pos = i
		if i+1 >= len(p.in) {
			return "", p.errorf("string is not closed")
		}
		if at := strings.IndexByte(`"\/bfnrt`, p.in[i+1]); at >= 0 {
			b.WriteByte("\"\\/\b\f\n\r\t"[at])
			i += 2
			continue
		}
		r, ok := p.hex(i)
		if !ok {
			return "", p.errorf("unknown escape in a string")
		}
		i += 6
		switch {
		case r >= 0xdc00 && r <= 0xdfff:
			return "", p.errorf("half a surrogate pair")
		case r >= 0xd800 && r <= 0xdbff:
			low, ok := p.hex(i)
			if !ok || low < 0xdc00 || low > 0xdfff {
				return "", p.errorf("half a surrogate pair")
			}
			i += 6
			r = 0x10000 + (r-0xd800)<<10 + (low - 0xdc00)
		}
		b.WriteRune(r)
	}
	return "", p.errorf("string is not closed")
}

// hex reads \uXXXX at i.
func (p *jsonParser) hex(i int) (rune, bool) {
	if i+6 > len(p.in) || p.in[i] != '\\' || p.in[i+1] != 'u' {
		return 0, false
	}
	var r rune
	for _, c := range p.in[i+2 : i+6] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

func (p *jsonParser) number() error {
	start := p.pos
	digits := func() bool {
		from := p.pos
		for p.pos < len(p.in) && p.in[p.pos] >= '0' && p.in[p.pos] <= '9' {
			p.pos++
		}
		return p.pos > from
	}
	at := func(c string) bool {
		if p.pos < len(p.in) && strings.IndexByte(c, p.in[p.pos]) >= 0 {
			p.pos++
			return true
		}
		return false
	}
	at("-")
	integer := true
	if !at("0") && !digits() {
		return p.errorf("malformed number")
	}
	if at(".") {
		integer = false
		if !digits() {
			return p.errorf("malformed number")
		}
	}
	if at("eE") {
		integer = false
		at("+-")
		if !digits() {
			return p.errorf("malformed number")
		}
	}
	text := string(p.in[start:p.pos])
	if len(text) > maxNumberLen {
		return p.errorf("number of %d characters", len(text))
	}
	if p.nums == canonicalNumbers {
		n, err := strconv.ParseInt(text, 10, 64)
		if !integer || err != nil || n > maxSafeInt || n < -maxSafeInt || text == "-0" {
			return p.errorf("number is not an integer of canonical JSON")
		}
		return nil
	}
	if f, err := strconv.ParseFloat(text, 64); err != nil || math.IsInf(f, 0) {
		return p.errorf("number out of range")
	}
	return nil
}

// appendCanonical appends v in canonical JSON (Matrix specification,
// appendices, "Canonical JSON"), leaving out the keys in omit at the top level.
func (v *jsonValue) appendCanonical(b []byte, omit ...string) []byte {
	switch v.kind {
	case jsonObject:
		order := make([]int, 0, len(v.keys))
	keys:
		for i, k := range v.keys {
			for _, o := range omit {
				if k == o {
					continue keys
				}
			}
			order = append(order, i)
		}
		sort.Slice(order, func(i, j int) bool { return v.keys[order[i]] < v.keys[order[j]] })
		b = append(b, '{')
		for n, i := range order {
			if n > 0 {
				b = append(b, ',')
			}
			b = appendCanonicalString(b, v.keys[i])
			b = append(b, ':')
			b = v.vals[i].appendCanonical(b)
		}
		return append(b, '}')
	case jsonArray:
		b = append(b, '[')
		for i := range v.vals {
			if i > 0 {
				b = append(b, ',')
			}
			b = v.vals[i].appendCanonical(b)
		}
		return append(b, ']')
	case jsonString:
		return appendCanonicalString(b, v.str)
	default:
		return append(b, v.raw...)
	}
}

func appendCanonicalString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c >= 0x20:
			b = append(b, c)
		case strings.IndexByte("\b\f\n\r\t", c) >= 0:
			b = append(b, '\\', "bfnrt"[strings.IndexByte("\b\f\n\r\t", c)])
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	return append(b, '"')
}

// DecodeObject parses a JSON object into *out, a struct with json tags, as the
// contents of events are parsed: keys match exactly, no key stands twice, null
// counts as absent, unknown keys are ignored. Any number is taken. It is for
// what is looked at here and acted on by somebody else, who might read keys that
// differ in case, or stand twice, in another way.
func DecodeObject(raw []byte, out any) error { return decodeObject(raw, out, anyNumbers) }

// decodeObject parses a JSON object strictly into *out, a struct with json
// tags. Keys match exactly (package encoding/json would fold case); unknown
// keys are ignored; null counts as absent.
func decodeObject(raw []byte, out any, nums numbers) error {
	v, err := parseJSON(raw, nums)
	if err != nil {
		return err
	}
	if v.kind != jsonObject {
		return refuse(RuleContentMalformed, "", "content is a JSON %v, want an object", v.kind)
	}
	return assign(v, reflect.ValueOf(out).Elem(), "")
}

var (
	textType = reflect.TypeFor[encoding.TextUnmarshaler]()
	jsonType = reflect.TypeFor[json.Unmarshaler]()
	rawType  = reflect.TypeFor[json.RawMessage]()
)

// assign sets dst from v. path names the place for errors.
func assign(v *jsonValue, dst reflect.Value, path string) error {
	if dst.Type() == rawType {
		dst.SetBytes(append([]byte(nil), v.raw...))
		return nil
	}
	if v.kind == jsonNull {
		return nil
	}
	mismatch := func(want string) error {
		return refuse(RuleContentMalformed, path, "is a JSON %v, want %s", v.kind, want)
	}
	if dst.Kind() != reflect.Pointer && dst.CanAddr() {
		if p := dst.Addr(); p.Type().Implements(jsonType) {
			return locate(p.Interface().(json.Unmarshaler).UnmarshalJSON(v.raw), path)
		} else if p.Type().Implements(textType) {
			if v.kind != jsonString {
				return mismatch("a string")
			}
			return locate(p.Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(v.str)), path)
		}
	}
	switch dst.Kind() {
	case reflect.Pointer:
		n := reflect.New(dst.Type().Elem())
		if err := assign(v, n.Elem(), path); err != nil {
			return err
		}
		dst.Set(n)
	case reflect.String:
		if v.kind != jsonString {
			return mismatch("a string")
		}
		dst.SetString(v.str)
	case reflect.Bool:
		if v.kind != jsonBool {
			return mismatch("a boolean")
		}
		dst.SetBool(v.raw[0] == 't')
	case reflect.Int, reflect.Int64:
		n, err := strconv.ParseInt(string(v.raw), 10, 64)
		if v.kind != jsonNumber || err != nil {
			return mismatch("an integer")
		}
		dst.SetInt(n)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := strconv.ParseUint(string(v.raw), 10, 64)
		if v.kind != jsonNumber || err != nil || dst.OverflowUint(n) {
			return mismatch(fmt.Sprintf("an integer of %d bits, not negative", dst.Type().Bits()))
		}
		dst.SetUint(n)
	case reflect.Slice:
		if v.kind != jsonArray {
			return mismatch("an array")
		}
		s := reflect.MakeSlice(dst.Type(), len(v.vals), len(v.vals))
		for i := range v.vals {
			if err := assign(&v.vals[i], s.Index(i), path+"["+strconv.Itoa(i)+"]"); err != nil {
				return err
			}
		}
		dst.Set(s)
	case reflect.Map:
		if v.kind != jsonObject {
			return mismatch("an object")
		}
		m := reflect.MakeMapWithSize(dst.Type(), len(v.keys))
		for i, k := range v.keys {
			e := reflect.New(dst.Type().Elem()).Elem()
			if err := assign(&v.vals[i], e, join(path, k)); err != nil {
				return err
			}
			m.SetMapIndex(reflect.ValueOf(k).Convert(dst.Type().Key()), e)
		}
		dst.Set(m)
	case reflect.Struct:
		if v.kind != jsonObject {
			return mismatch("an object")
		}
		for i := range dst.NumField() {
			if dst.Type().Field(i).Anonymous {
				if err := assign(v, dst.Field(i), path); err != nil {
					return err
				}
				continue
			}
			name, _, _ := strings.Cut(dst.Type().Field(i).Tag.Get("json"), ",")
			if name == "" || name == "-" {
				continue
			}
			if m := v.member(name); m != nil {
				if err := assign(m, dst.Field(i), join(path, name)); err != nil {
					return err
				}
			}
		}
	default:
		return refuse(RuleContentMalformed, path, "cannot be read into %v", dst.Type())
	}
	return nil
}

func join(path, key string) string {
	if len(key) > 64 {
		key = key[:64] + "…"
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

// locate adds the place to a refusal of an inner decoder.
func locate(err error, path string) error {
	var r *Refusal
	switch {
	case err == nil:
		return nil
	case errors.As(err, &r):
		c := *r
		c.What = path
		return &c
	default:
		return &Refusal{Rule: RuleContentMalformed, What: path, Err: err}
	}
}

// encodeJSON writes v as compact JSON without HTML escapes.
func encodeJSON(v any) (json.RawMessage, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("rooms: encode %T: %w", v, err)
	}
	return json.RawMessage(strings.TrimSuffix(b.String(), "\n")), nil
}
