package mls

import (
	"compress/gzip"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// acvpKeyGen is a file of NIST's Automated Cryptographic Validation Protocol
// for ML-DSA.keyGen (FIPS 204, Algorithm 1), questions or answers.
type acvpKeyGen struct {
	Groups []struct {
		ParameterSet string `json:"parameterSet"`
		Tests        []struct {
			ID   int      `json:"tcId"`
			Seed hexBytes `json:"seed"`
			PK   hexBytes `json:"pk"`
			SK   hexBytes `json:"sk"`
		} `json:"tests"`
	} `json:"testGroups"`
}

// TestMLDSAKeysAreThoseOfNIST makes keys from the seeds of NIST's vectors for
// FIPS 204, which circl's module carries: the public key is theirs, and what
// we sign with the seed is what their expanded private key signs.
func TestMLDSAKeysAreThoseOfNIST(t *testing.T) {
	dir := filepath.Join(moduleDir(t, "github.com/cloudflare/circl"), "sign", "mldsa", "testdata", "ML-DSA-keyGen-FIPS204")
	var prompt, want acvpKeyGen
	readGzipJSON(t, filepath.Join(dir, "prompt.json.gz"), &prompt)
	readGzipJSON(t, filepath.Join(dir, "expectedResults.json.gz"), &want)
	seen := make(map[string]int)
	for g, group := range prompt.Groups {
		cs, ok := map[string]CipherSuite{
			"ML-DSA-44": MLS_128_MLKEM768X25519_CHACHA20POLY1305_SHA384_MLDSA44,
			"ML-DSA-65": MLS_192_MLKEM768_AES256GCM_SHA384_MLDSA65,
			"ML-DSA-87": MLS_256_MLKEM1024_AES256GCM_SHA384_MLDSA87,
		}[group.ParameterSet]
		if !ok {
			t.Fatalf("unknown parameter set %q", group.ParameterSet)
		}
		for i, tc := range group.Tests {
			answer := want.Groups[g].Tests[i]
			if answer.ID != tc.ID {
				t.Fatalf("case %d is answered by %d", tc.ID, answer.ID)
			}
			key, err := ParseSignaturePrivateKey(cs, tc.Seed)
			noError(t, err)
			wantBytes(t, "public key", key.Public(), answer.PK)
			expanded, err := cs.SignatureScheme().mldsa().UnmarshalBinaryPrivateKey(answer.SK)
			noError(t, err)
			sig, err := SignWithLabel(cs, key, "label", []byte("content"))
			noError(t, err)
			wantBytes(t, "signature", sig, cs.SignatureScheme().mldsa().Sign(expanded, signedContent("label", []byte("content")), nil))
			noError(t, VerifyWithLabel(cs, SignaturePublicKey(answer.PK), "label", []byte("content"), sig))
			seen[group.ParameterSet]++
		}
	}
	for _, set := range []string{"ML-DSA-44", "ML-DSA-65", "ML-DSA-87"} {
		if seen[set] < 25 {
			t.Errorf("%d keys of %s, want 25", seen[set], set)
		}
	}
}

// moduleDir returns the folder of a module that this one requires.
func moduleDir(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", path).Output()
	if err != nil {
		t.Fatalf("go list -m %s: %v", path, err)
	}
	return strings.TrimSpace(string(out))
}

func readGzipJSON(t *testing.T, path string, v any) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.NewDecoder(z).Decode(v); err != nil {
		t.Fatal(err)
	}
}
