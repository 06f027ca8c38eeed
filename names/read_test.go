package names

import (
	"errors"
	"strings"
	"testing"
	"testing/iotest"
)

func TestRead(t *testing.T) {
	l, err := Read(strings.NewReader("\ufeff# a comment\r\n\r\n  example.org  \r\n**.example.com # and why\n#\n \t \na\\#b.org#c\nlast.example"))
	if err != nil {
		t.Fatal(err)
	}
	if l.Len() != 4 {
		t.Errorf("Len is %d", l.Len())
	}
	for _, name := range []string{"example.org.", "a.example.com.", "a#b.org.", "last.example."} {
		if !l.Match(name) {
			t.Errorf("%s does not match", name)
		}
	}
}

func TestReadEmpty(t *testing.T) {
	for _, text := range []string{"", "\n", "# nothing yet"} {
		if l, err := Read(strings.NewReader(text)); err != nil || l == nil || l.Len() != 0 {
			t.Errorf("%q: %v, %v", text, l, err)
		}
	}
}

func TestReadRefused(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"the line is named", "a.org\n\n# x\nb*.org\n", `line 4: "b*.org": * stands for`},
		{"backslashes are shown as written", "a\\300.org", `line 1: "a\300.org": after a backslash`},
		{"another program's list", "a.org\n0.0.0.0 b.org", `line 2: "0.0.0.0 b.org": one pattern at a time`},
		{"no text at all", "a.org\n" + strings.Repeat("\x00", 10000), "line 2 is longer than"},
		{"a backslash in front of the comment", `a\ # b`, "after a backslash"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l, err := Read(strings.NewReader(test.text))
			if err == nil || l != nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v\nwant: %s", err, test.want)
			}
		})
	}
}

func TestReadFails(t *testing.T) {
	broken := errors.New("broken")
	if l, err := Read(iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader("a.org")))); l != nil || !errors.Is(err, iotest.ErrTimeout) {
		t.Errorf("%v, %v", l, err)
	}
	if l, err := Read(iotest.ErrReader(broken)); l != nil || !errors.Is(err, broken) {
		t.Errorf("%v, %v", l, err)
	}
}
