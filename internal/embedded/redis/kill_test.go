package redis_test

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/syndtr/goleveldb/leveldb/journal"

	"github.com/millrace/millrace/internal/embedded/redis"
)

// victimDir is the environment variable that makes the test binary a victim of TestKill.
const victimDir = "MILLRACE_TEST_VICTIM"

// victim writes rounds until it is killed, and prints each acknowledged one.
func victim(dir string) error {
	h, err := redis.Open(dir, slog.Default())
	if err != nil {
		return err
	}
	at, err := h.Do("HGET", "positions", "t/0")
	if err != nil {
		return err
	}
	position, _ := at.(string)
	n, _ := strconv.Atoi(position)
	for {
		n++
		if err := round(h, n); err != nil {
			return err
		}
		if _, err := os.Stdout.WriteString(strconv.Itoa(n) + "\n"); err != nil {
			return err
		}
	}
}

// TestKill kills a process that writes, repeatedly and at random moments. Every acknowledged write
// must be there, and each write complete.
func TestKill(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "redis")
	for life := range 6 {
		cmd := exec.CommandContext(context.Background(), os.Args[0])
		cmd.Env = append(os.Environ(), victimDir+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		acknowledged := 0
		lines := 0
		for in := bufio.NewScanner(out); in.Scan(); lines++ {
			if lines == 700+313*life { // LevelDB writes a table after every few thousand
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			if acknowledged, err = strconv.Atoi(in.Text()); err != nil {
				t.Fatalf("the victim printed %q", in.Text())
			}
		}
		if err := cmd.Wait(); !errors.As(err, new(*exec.ExitError)) || lines < 700 {
			t.Fatalf("the victim exited by itself after %d rounds: %v", lines, err)
		}
		h := open(t, dir)
		if at := checkRounds(t, h); at < acknowledged {
			t.Fatalf("round %d was acknowledged, but after the kill the position is %d", acknowledged, at)
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(dir + ".damaged"); err == nil {
		t.Error("a kill was treated as damage: the view would be rebuilt")
	}
}

// A kill between two writes of a record may leave any part of it. That part is removed, and nothing
// else.
func TestTruncatedJournal(t *testing.T) {
	t.Parallel()
	whole := filepath.Join(t.TempDir(), "redis")
	h := open(t, whole)
	const rounds = 130
	for n := 1; n <= rounds; n++ {
		if err := round(h, n); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	journals, err := filepath.Glob(filepath.Join(whole, "*.log"))
	if err != nil || len(journals) != 1 {
		t.Fatalf("journals: %v, %v", journals, err)
	}
	content, err := os.ReadFile(journals[0])
	if err != nil {
		t.Fatal(err)
	}
	last := rounds
	for cut := 0; cut < len(content); cut += 1 + len(content)/97 {
		dir := filepath.Join(t.TempDir(), "redis")
		if err := os.CopyFS(dir, os.DirFS(whole)); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(dir, filepath.Base(journals[0])), int64(len(content)-cut)); err != nil {
			t.Fatal(err)
		}
		h := open(t, dir)
		at := checkRounds(t, h)
		if at > last || len(content)-cut > len(content)/2 && at < rounds/3 {
			t.Fatalf("cut off %d of %d bytes: position %d, which was %d with less cut off", cut, len(content), at, last)
		}
		last = at
		if _, err := os.Stat(dir + ".damaged"); err == nil {
			t.Fatalf("cut off %d of %d bytes: it was treated as damage", cut, len(content))
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzCompleteRecords truncates a journal anywhere and flips any bit. The end that is found is
// never within a record.
func FuzzCompleteRecords(f *testing.F) {
	f.Add([]byte("a"), 40_000, uint32(70), uint32(0))
	f.Add([]byte("abc"), 7, uint32(11), uint32(3))
	f.Add([]byte{}, 32_761, uint32(0), uint32(1))
	f.Fuzz(func(t *testing.T, record []byte, repeat int, cut, flip uint32) {
		var file writerTo
		w := journal.NewWriter(&file)
		var ends []int
		for range 3 {
			r, err := w.Next()
			if err != nil {
				t.Fatal(err)
			}
			for range min(max(repeat, 0), 100_000) / max(1, len(record)) {
				if _, err := r.Write(record); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			ends = append(ends, len(file))
		}
		part := file[:int(cut)%(len(file)+1)]
		want := 0
		for _, end := range ends {
			if end <= len(part) {
				want = end
			}
		}
		if end, torn := redis.CompleteRecords(part); end != want && torn || torn != (want < len(part)) {
			t.Fatalf("of %d bytes, with records that end at %v: %d, %v", len(part), ends, end, torn)
		}
		if len(part) > 0 {
			part[int(flip)%len(part)] ^= 1 << (flip % 8)
			if end, _ := redis.CompleteRecords(part); end < 0 || end > len(part) {
				t.Fatalf("an end at %d of %d", end, len(part))
			}
		}
	})
}

type writerTo []byte

func (w *writerTo) Write(p []byte) (int, error) {
	*w = append(*w, p...)
	return len(p), nil
}
