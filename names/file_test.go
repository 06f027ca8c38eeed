package names

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// followed runs a test in a bubble of time of its own, in which nobody waits for
// the next look, and which fails if the follower outlives Close.
func followed(t *testing.T, path string, test func(f *followedFile)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := &followedFile{T: t, path: path}
		var err error
		if f.File, err = OpenFile(path); err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		f.Follow(func(l *List, err error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			if l != f.List() || l == nil {
				t.Errorf("told %v, in force is %v", l, f.List())
			}
			told := ""
			if err != nil {
				told = err.Error()
			}
			f.told = append(f.told, told)
		})
		test(f)
	})
}

type followedFile struct {
	*testing.T
	*File
	path string

	mu   sync.Mutex
	told []string // errors, empty if there was none
}

// look waits for some looks and returns what was told meanwhile.
func (f *followedFile) look(times int) []string {
	time.Sleep(time.Duration(times) * lookEvery)
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	told := f.told
	f.told = nil
	return told
}

// after waits for some looks and checks that the file was read without an error
// that many times meanwhile, and what is in force.
func (f *followedFile) after(looks, reads int, matches string) {
	f.Helper()
	if told := f.look(looks); len(told) != reads || strings.Join(told, "") != "" {
		f.Errorf("after %d looks it is told %q, want %d changes", looks, told, reads)
	}
	f.inForce(matches)
}

// fails is the same for one error.
func (f *followedFile) fails(looks int, want, matches string) {
	f.Helper()
	if told := f.look(looks); len(told) != 1 || !strings.Contains(told[0], want) || !strings.Contains(told[0], f.path) {
		f.Errorf("after %d looks it is told %q, want once: %s", looks, told, want)
	}
	f.inForce(matches)
}

func (f *followedFile) inForce(matches string) {
	f.Helper()
	if l := f.List(); l.Len() != 1 || !l.Match(matches) {
		f.Errorf("%s is not the list in force", matches)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newFile(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "list")
	write(t, path, "first.org\n")
	return path
}

func TestFileWrittenInPlace(t *testing.T) {
	path := newFile(t)
	followed(t, path, func(f *followedFile) {
		f.after(10, 0, "first.org.")
		write(t, path, "a.second.org\n")
		f.after(1, 0, "first.org.") // it may be half of it
		write(t, path, "second.org\n")
		f.after(1, 0, "first.org.")
		f.after(1, 1, "second.org.")
		f.after(10, 0, "second.org.")
	})
}

func TestFileOfTheSameSize(t *testing.T) {
	path := newFile(t)
	followed(t, path, func(f *followedFile) {
		write(t, path, "other.org\n")
		later := time.Now().Add(100 * 365 * 24 * time.Hour) // than the clock outside
		must(t, os.Chtimes(path, later, later))
		f.after(2, 1, "other.org.")
	})
}

func TestFileReplaced(t *testing.T) {
	path := newFile(t)
	followed(t, path, func(f *followedFile) {
		for range 3 {
			write(t, path+".new", "second.org\n")
			must(t, os.Rename(path+".new", path))
			f.after(1, 1, "second.org.")
			f.after(10, 0, "second.org.")
		}
	})
}

// As a kubelet does: names link to ..data/name, and ..data to a folder.
func TestFileOfConfigMap(t *testing.T) {
	folder := t.TempDir()
	generation := func(name, text string) {
		must(t, os.Mkdir(filepath.Join(folder, name), 0o700))
		write(t, filepath.Join(folder, name, "list"), text)
		must(t, os.Symlink(name, filepath.Join(folder, "..data_tmp")))
		must(t, os.Rename(filepath.Join(folder, "..data_tmp"), filepath.Join(folder, "..data")))
	}
	generation("..1", "first.org\n")
	path := filepath.Join(folder, "list")
	must(t, os.Symlink(filepath.Join("..data", "list"), path))
	followed(t, path, func(f *followedFile) {
		f.after(1, 0, "first.org.")
		generation("..2", "other.org\n")
		must(t, os.RemoveAll(filepath.Join(folder, "..1")))
		f.after(1, 1, "other.org.")
		generation("..3", "third.org\n")
		f.after(1, 1, "third.org.")
	})
}

func TestFileBroken(t *testing.T) {
	path := newFile(t)
	followed(t, path, func(f *followedFile) {
		write(t, path, "second.org\nthi*rd.org\n")
		f.fails(10, "line 2: ", "first.org.")
		write(t, path, "second.org\nthir*d.org\n# still\n")
		f.fails(10, "line 2: ", "first.org.")
		write(t, path, "second.org\n")
		f.after(2, 1, "second.org.")
	})
}

func TestFileRemoved(t *testing.T) {
	path := newFile(t)
	followed(t, path, func(f *followedFile) {
		must(t, os.Rename(path, path+".away"))
		f.fails(10, "no such file", "first.org.")
		must(t, os.Rename(path+".away", path))
		f.after(1, 1, "first.org.") // the news is that it is back
		must(t, os.Remove(path))
		f.fails(1, "no such file", "first.org.")
		write(t, path, "second.org\n")
		f.after(1, 1, "second.org.")
	})
}

func TestFileIsFolder(t *testing.T) {
	path := newFile(t)
	followed(t, path, func(f *followedFile) {
		must(t, os.Remove(path))
		must(t, os.Mkdir(path, 0o700))
		f.fails(10, "not a regular file", "first.org.")
		must(t, os.Remove(path))
		f.fails(10, "no such file", "first.org.")
	})
}

func TestFileNotAtFirst(t *testing.T) {
	path := newFile(t)
	write(t, path+".broken", "\n.org\n")
	for file, want := range map[string]string{
		path + ".missing":  "no such file",
		path + ".broken":   "list.broken: line 2: ",
		filepath.Dir(path): "not a regular file",
	} {
		f, err := OpenFile(file)
		if f != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, %v, want %s", f, err, want)
		}
	}
}

func TestFileClose(t *testing.T) {
	path := newFile(t)
	followed(t, path, func(f *followedFile) {
		for range 3 {
			go f.Close()
		}
		f.Close()
		must(t, os.Remove(path))
		f.after(10, 0, "first.org.")
	})
}

// A file that was only read is closed at once.
func TestFileNotFollowed(t *testing.T) {
	f, err := OpenFile(newFile(t))
	must(t, err)
	f.Close()
	if !f.List().Match("first.org.") {
		t.Error("not read")
	}
}

// Close waits for whoever is being told, so nobody is told afterwards.
func TestFileCloseWaits(t *testing.T) {
	path := newFile(t)
	synctest.Test(t, func(t *testing.T) {
		finished := false
		f, err := OpenFile(path)
		must(t, err)
		f.Follow(func(*List, error) {
			time.Sleep(time.Hour)
			finished = true
		})
		must(t, os.Remove(path))
		time.Sleep(lookEvery + time.Second)
		f.Close()
		if !finished {
			t.Error("Close did not wait")
		}
	})
}

func TestFileNobodyListens(t *testing.T) {
	path := newFile(t)
	synctest.Test(t, func(t *testing.T) {
		f, err := OpenFile(path)
		must(t, err)
		f.Follow(nil)
		defer f.Close()
		must(t, os.Remove(path))
		time.Sleep(lookEvery)
		synctest.Wait()
		write(t, path, "second.org\n")
		time.Sleep(lookEvery)
		synctest.Wait()
		if !f.List().Match("second.org.") {
			t.Error("not followed")
		}
	})
}
