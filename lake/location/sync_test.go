package location

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// For a durable file, every folder with a new entry is synced: the file's own, and those created
// for it.
func TestSyncedFolders(t *testing.T) {
	Sync()
	t.Cleanup(func() { synced.Store(false) })
	var folders []string
	really := syncFolder
	syncFolder = func(folder string) error {
		folders = append(folders, folder)
		return really(folder)
	}
	t.Cleanup(func() { syncFolder = really })
	root := t.TempDir()
	write := func(name string) []string {
		folders = nil
		if err := (Local{}).WriteFile("file://"+root+"/"+name, []byte("content")); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(b) != "content" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		return folders
	}
	if got, want := write("a/b/first"), []string{root + "/a/b", root + "/a", root}; !slices.Equal(got, want) {
		t.Errorf("synced %q, want %q", got, want)
	}
	if got, want := write("a/b/second"), []string{root + "/a/b"}; !slices.Equal(got, want) {
		t.Errorf("synced %q, want %q", got, want)
	}
	folders = nil
	f, err := (Local{}).Create(root + "/c/third")
	if err != nil {
		t.Fatal(err)
	}
	if len(folders) > 0 {
		t.Error("synced before it is closed")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if want := []string{root + "/c", root}; !slices.Equal(folders, want) {
		t.Errorf("synced %q, want %q", folders, want)
	}
}
