package names

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// A pattern as it has been read; the slices are used again for the next.
type pattern struct {
	deep   bool // ** in front
	open   bool // some label is not literal
	labels []label
	rest   []byte // what is left of it without them, see shape
	least  int    // bytes that a matching name has at least, as a wire
}

// shape appends the name of the pattern's shape: patterns of one shape with the same rest
// are the same.
func (p *pattern) shape(name []byte) []byte {
	for _, l := range p.labels { // to be read backwards: no length is as great as a letter
		kind := byte('l')
		switch {
		case l.any:
			kind = 'a'
		case l.mask != 0:
			kind = l.size
			name = binary.LittleEndian.AppendUint64(name, l.mask)
		}
		name = append(name, kind)
	}
	if p.deep {
		name = append(name, 'd')
	}
	return name
}

// rank says how specific the pattern is: of two that a name matches, the one whose rank is
// the greater string. Where one has ended, the other can have ** only.
func (p *pattern) rank() string {
	var rank []byte
	for _, l := range slices.Backward(p.labels) {
		switch {
		case l.any:
			rank = append(rank, '2')
		case l.mask != 0:
			rank = append(rank, '3')
		default:
			rank = append(rank, '4')
		}
	}
	if p.deep {
		return string(append(rank, '0'))
	}
	return string(append(rank, '1'))
}

var (
	errEmpty = errors.New("there is nothing: write a name, ** for every name or . for the root")
	errLong  = errors.New("no name is that long: 255 bytes are the most (RFC 1035, section 2.3.4)")
	errStar  = errors.New(`* stands for a whole label: write ? for one character, leave out the label's other characters, ` +
		`or write \* for the asterisk itself`)
	errDeep   = errors.New("** stands in front only, once: write * for each one label elsewhere")
	errEscape = errors.New(`after a backslash stand three digits from 000 to 255 or one character that is no digit; ` +
		`the backslash itself is \\`)
)

func (p *pattern) parse(text []byte) error {
	*p = pattern{labels: p.labels[:0], rest: p.rest[:0]}
	if len(text) == 0 {
		return errEmpty
	}
	if string(text) == "." {
		return nil
	}
	for i := 0; i < len(text); {
		next, err := p.parseLabel(text, i)
		if err != nil {
			return err
		}
		i = next
	}
	return nil
}

// parseLabel reads the label that starts at text[i] and returns where the next
// one does.
func (p *pattern) parseLabel(text []byte, i int) (next int, err error) {
	l := label{at: len(p.labels)}
	var stars, size int
	start, head := i, len(p.rest)
	p.rest = append(p.rest, 0)
	for i < len(text) && text[i] != '.' {
		c := text[i]
		i++
		switch {
		case c == '*':
			stars++
		case c == '?':
			l.mask |= 1 << min(size, maxLabel)
			c = 0
		case c == '\\':
			var ok bool
			if c, i, ok = unescape(text, i); !ok {
				return 0, errEscape
			}
		case c >= 0x80:
			return 0, foreign(string(text))
		case !plain(c):
			return 0, strange(c)
		}
		size++
		p.rest = append(p.rest, lower[c])
	}
	written := text[start:i]
	switch {
	case string(written) == "**":
		if p.deep || len(p.labels) > 0 {
			return 0, errDeep
		}
		p.deep = true
		p.rest = p.rest[:head]
		return i + 1, nil
	case string(written) == "*":
		l.any = true
		p.rest = p.rest[:head]
	case stars > 0:
		return 0, errStar
	case size == 0:
		return 0, emptyLabel(text, start)
	case size > maxLabel:
		return 0, fmt.Errorf("a label has %d bytes: %d are the most (RFC 1035, section 2.3.4)", size, maxLabel)
	default:
		p.rest[head] = byte(size)
	}
	l.size = uint8(size)
	p.least += 1 + size
	if p.least > maxWire {
		return 0, errLong
	}
	p.open = p.open || !l.literal()
	p.labels = append(p.labels, l)
	return i + 1, nil
}

// plain are the characters of host names (RFC 1123, section 2.1), and two more
// that names have without being hosts': _ (RFC 8552) and / (RFC 2317).
func plain(c byte) bool {
	return digit(c) || 'a' <= lower[c] && lower[c] <= 'z' || c == '-' || c == '_' || c == '/'
}

// strange refuses what DNS would allow, since here it is nearly always a port, a
// scheme, a comma or another program's notation, and such a pattern would match
// nothing, without a word.
func strange(c byte) error {
	if c == ' ' || c == '\t' {
		return fmt.Errorf(`one pattern at a time, and without spaces around it: a space in a name is written \%03d`, c)
	}
	if c == ',' {
		return fmt.Errorf(`%q is in no host name: patterns stand apart by blanks (in a file, by lines), without commas. If the name has this character, it is written \%03d`, c, c)
	}
	return fmt.Errorf(`%q is in no host name: write the name alone, or \%03d if the name has this character`, c, c)
}

func emptyLabel(text []byte, at int) error {
	if at == 0 && text[1] != '.' {
		return fmt.Errorf("a dot stands in front: for the name and all below it write %s", "**"+shorten(string(text)))
	}
	return errors.New("nothing stands between two dots: leave one out")
}

// foreign refuses a name that is not ASCII. To turn it into what DNS asks for
// is not done silently, since what looks alike may be different names.
func foreign(text string) error {
	const refused = "a name that is not ASCII is written in its xn-- form (RFC 5890, section 2.3.2.1)"
	labels := strings.Split(text, ".")
	for i, l := range labels {
		if strings.IndexFunc(l, func(r rune) bool { return r >= 0x80 }) < 0 {
			continue
		}
		ascii, err := idna.Lookup.ToASCII(l)
		if err != nil {
			return errors.New(refused)
		}
		labels[i] = ascii
	}
	return fmt.Errorf("%s: %s", refused, shorten(strings.Join(labels, ".")))
}

// quote shows a pattern in an error. Its backslashes stay single, as they were
// written.
func quote(text []byte) string {
	return strings.ReplaceAll(strconv.Quote(shorten(string(text))), `\\`, `\`)
}

func shorten(text string) string {
	const most = 300 // more than a name has unless much of it is escaped
	if len(text) > most {
		return strings.ToValidUTF8(text[:most], "") + "..."
	}
	return text
}
