package engine

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// writeTree writes files below a new folder.
func writeTree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// readTree returns the files below a folder.
func readTree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		name, relErr := filepath.Rel(dir, path)
		files[name] = string(content)
		return errors.Join(err, relErr)
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestRepair(t *testing.T) {
	t.Parallel()
	const table = "store/31b/31b42109/"
	before := map[string]string{
		"metadata/lake_ab12.sql":                                 "ATTACH DATABASE lake_ab12 ENGINE = Memory",
		"metadata/lake_cut.sql":                                  "",
		"metadata/features.sql":                                  "ATTACH DATABASE features ENGINE = Atomic",
		"metadata/new.sql":                                       "",
		"store/058/058c5337/t.sql":                               "ATTACH TABLE t",
		"store/058/058c5337/created.sql":                         "",
		"store/058/058c5337/altered.sql":                         "",
		"definitions/058c5337.altered.sql":                       "ATTACH TABLE altered",
		table + "mutation_12.txt":                                "format version: 1",
		table + "mutation_13.txt":                                "",
		"definitions/058c5337.t.sql":                             "ATTACH TABLE t, before",
		table + "0_1_5_1/checksums.txt":                          "sums",
		table + "0_1_1_0/checksums.txt":                          "sums",
		table + "1_2_2_0/checksums.txt":                          "sums",
		table + "1_9_9_0/columns.txt":                            "no checksums",
		table + "tmp_insert_1_8_8_0/checksums.txt":               "not in the table",
		table + "deduplication_logs/deduplication_log_1.txt":     "1\t0_1_1_0\ta\n1\t1_2_2_0\tb\n1\t0_3_3_0\tc\n2\t1_2_2_0\tb\n1\t1_8_8_0\td\n",
		table + "deduplication_logs/deduplication_log_2.txt":     "1\t1_9_9_0\te\nnot a record\n1\t0_5_5_0\tf\n1\t0_7_7_0\tg\n1\t1_2_",
		table + "deduplication_logs/deduplication_log_2.txt.tmp": "x",
	}
	dir := writeTree(t, before)
	done, err := repair(dir)
	if err != nil || done != (repaired{Databases: 2, Definitions: 4, Tokens: 3}) {
		t.Errorf("%+v, %v", done, err)
	}
	want := maps.Clone(before)
	for _, gone := range []string{"metadata/lake_ab12.sql", "metadata/lake_cut.sql", "metadata/new.sql", "store/058/058c5337/created.sql",
		"definitions/058c5337.altered.sql", "definitions/058c5337.t.sql", table + "mutation_13.txt", table + "deduplication_logs/deduplication_log_2.txt.tmp"} {
		delete(want, gone)
	}
	want["store/058/058c5337/altered.sql"] = "ATTACH TABLE altered"
	want[table+"deduplication_logs/deduplication_log_1.txt"] = "1\t0_1_1_0\ta\n1\t1_2_2_0\tb\n1\t0_3_3_0\tc\n2\t1_2_2_0\tb\n"
	want[table+"deduplication_logs/deduplication_log_2.txt"] = "1\t0_5_5_0\tf\n"
	if got := readTree(t, dir); !maps.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	// A second one changes nothing, and neither does one of an empty folder.
	if done, err := repair(dir); err != nil || done != (repaired{}) {
		t.Errorf("again: %+v, %v", done, err)
	}
	if done, err := repair(t.TempDir()); err != nil || done != (repaired{}) {
		t.Errorf("empty: %+v, %v", done, err)
	}
}

func TestParsePart(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]part{
		"202611_1_7_2": {"202611", 1, 7, 2, 0}, "all_3_3_0_9": {"all", 3, 3, 0, 9}, "-1-5_1_1_0": {"-1-5", 1, 1, 0, 0},
	} {
		if got, ok := parsePart(name); !ok || got != want {
			t.Errorf("%s: %+v, %v", name, got, ok)
		}
	}
	for _, name := range []string{"", "detached", "tmp_insert_all_1_1_0", "all_1_1", "all_2_1_0", "all_-1_1_0", "_1_1_0", "all_1_1_x", "all_1_1_0_1_1"} {
		if got, ok := parsePart(name); ok {
			t.Errorf("%q is a part: %+v", name, got)
		}
	}
}

// Whatever the parts are, repair keeps the tokens of rows that exist, and only those.
func TestTokensOfRowsAreKept(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		ranges := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) part {
			first := rapid.Uint64Range(1, 20).Draw(t, "first")
			return part{partition: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "partition"), first: first, last: first + rapid.Uint64Range(0, 5).Draw(t, "more"), level: 1}
		}), 0, 4).Draw(t, "parts")
		var log strings.Builder
		var want []string
		for _, partition := range []string{"a", "b"} {
			for n := uint64(1); n <= 25; n++ {
				line := "1\t" + partition + "_" + strconv.FormatUint(n, 10) + "_" + strconv.FormatUint(n, 10) + "_0\ttoken" + partition + strconv.FormatUint(n, 10) + "\n"
				log.WriteString(line)
				if slices.ContainsFunc(ranges, func(p part) bool { return p.partition == partition && p.first <= n && n <= p.last }) {
					want = append(want, line)
				}
			}
		}
		got, missing := withoutMissing([]byte(log.String()), ranges)
		if string(got) != strings.Join(want, "") || missing != 50-len(want) {
			t.Fatalf("%q, %d missing; want %q", got, missing, want)
		}
	})
}

func FuzzWithoutMissing(f *testing.F) {
	f.Add([]byte("1\tall_1_1_0\tx\n2\tall_1_1_0\tx\n1\tall_2_"))
	f.Fuzz(func(t *testing.T, log []byte) {
		parts := []part{{partition: "all", first: 1, last: 1}}
		kept, missing := withoutMissing(log, parts)
		if again, more := withoutMissing(kept, parts); string(again) != string(kept) || more != 0 || missing < 0 {
			t.Errorf("not stable: %q, then %q", kept, again)
		}
	})
}
