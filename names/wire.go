package names

const (
	maxLabel  = 63          // RFC 1035, section 2.3.4
	maxWire   = 255 - 1     // the same, without the root's own byte
	maxLabels = maxWire / 2 // each takes its length and at least one byte
)

// A wire is a name as RFC 1035, section 3.1, sends it: each label behind its
// length. Only then can two names be compared as bytes. Left out is the root's
// final zero; letters are in lower case.
type wire struct {
	bytes  [maxWire]byte
	size   int
	at     [maxLabels]uint8 // where each label's length stands
	labels int
}

// last is the end of the name, that many labels of it.
func (w *wire) last(labels int) []byte {
	if labels == 0 {
		return nil
	}
	return w.bytes[w.at[w.labels-labels]:w.size]
}

// read takes a name in presentation format and reports whether it is one.
func (w *wire) read(name string) bool {
	if name == "." {
		return true
	}
	// Kept in registers: through w, every byte would wait for the one before.
	size, labels := 0, 0
	for i := 0; i < len(name); {
		start := size
		size++
		for i < len(name) {
			c := name[i]
			i++
			if c == '.' {
				break
			}
			if c == '\\' {
				var ok bool
				if c, i, ok = unescape(name, i); !ok {
					return false
				}
			}
			if size >= maxWire {
				return false
			}
			w.bytes[size] = lower[c]
			size++
		}
		length := size - start - 1
		if length == 0 || length > maxLabel {
			return false
		}
		w.bytes[start] = byte(length)
		w.at[labels] = uint8(start)
		labels++
	}
	w.size, w.labels = size, labels
	return labels > 0
}

// unescape reads what is behind a backslash, from text[i] on: three decimal
// digits that make up a byte, or any one character that is no digit (RFC 1035,
// section 5.1). It returns the byte and where the text goes on.
func unescape[T string | []byte](text T, i int) (byte, int, bool) {
	if i >= len(text) {
		return 0, i, false
	}
	if !digit(text[i]) {
		return text[i], i + 1, true
	}
	if i+3 > len(text) || !digit(text[i+1]) || !digit(text[i+2]) {
		return 0, i, false
	}
	value := int(text[i]-'0')*100 + int(text[i+1]-'0')*10 + int(text[i+2]-'0')
	return byte(value), i + 3, value <= 255
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

// lower folds the case of ASCII letters and of nothing else (RFC 4343,
// section 3), whether they were escaped or not.
var lower = func() (table [256]byte) {
	for i := range table {
		table[i] = byte(i)
		if 'A' <= i && i <= 'Z' {
			table[i] += 'a' - 'A'
		}
	}
	return table
}()
