package validate

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// rootAnchors are the keys of the root, KSK-2017 and KSK-2024, as IANA has published them:
// https://data.iana.org/root-anchors/root-anchors.xml.
const rootAnchors = `
. 86400 IN DS 20326 8 2 E06D44B80B8F1D39A95C0B0D7C65D08458E880409BBC683457104237C7F8EC8D
. 86400 IN DS 38696 8 2 683D2D0ACB8C9B712A1948B27F741219298D0A450D612C483AF444A4C0FB2B16
`

// An anchor is a file with the keys of one zone that are trusted now.
type anchor struct{ zone, file string }

// Anchors reads files of trust anchors and says whether they are right.
func Anchors(files []string) error {
	_, err := readAnchors(files)
	return err
}

// readAnchors returns the records of each zone, as text.
func readAnchors(files []string) (map[string]string, error) {
	zones := map[string]string{}
	add := func(file, text string) error {
		parser := dns.NewZoneParser(strings.NewReader(text), ".", file)
		n := 0
		for rr, ok := parser.Next(); ok; rr, ok = parser.Next() {
			switch rr.(type) {
			case *dns.DS, *dns.DNSKEY:
				zone := dns.CanonicalName(rr.Header().Name)
				zones[zone] += rr.String() + "\n"
				n++
			default:
				return fmt.Errorf("%s: a trust anchor is a DS or DNSKEY record, not %q", file, rr)
			}
		}
		if err := parser.Err(); err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("%s: there is no trust anchor in it: it needs DS or DNSKEY records", file)
		}
		return nil
	}
	if len(files) == 0 {
		return zones, add("the built-in anchors", rootAnchors)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if err := add(file, string(text)); err != nil {
			return nil, err
		}
	}
	return zones, nil
}

// Prepare makes the files in which trusted keys are kept, or says why it cannot.
func (c *Config) Prepare() error {
	_, err := seed(*c)
	return err
}

// seed makes the files in which libunbound keeps trusted keys current, unless they are
// there. What they were made from is in their names: whoever changes an anchor begins anew.
func seed(config Config) (all []anchor, err error) {
	zones, err := readAnchors(config.Anchors)
	if err != nil {
		return nil, err
	}
	for zone, text := range zones {
		sum := sha256.Sum256([]byte(text))
		a := anchor{zone, filepath.Join(config.State, fmt.Sprintf("ipdestinationguard-anchor-%x.key", sum[:8]))}
		if _, err := os.Stat(a.file); err != nil {
			// In one step, or a start that is cut short would leave half of it.
			if err := os.MkdirAll(filepath.Dir(a.file), 0o700); err != nil {
				return nil, fmt.Errorf("trusted keys are kept in the state folder: %w", err)
			}
			fresh := a.file + ".new"
			if err := os.WriteFile(fresh, []byte(text), 0o600); err != nil {
				return nil, fmt.Errorf("trusted keys are kept in the state folder: %w", err)
			}
			if err := os.Rename(fresh, a.file); err != nil {
				return nil, err
			}
		}
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b anchor) int { return strings.Compare(a.zone, b.zone) })
	return all, nil
}
