package location

import (
	"bytes"
	"errors"
	"fmt"
	stdio "io"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/io"
	"github.com/twmb/avro/ocf"
)

// Prefix and suffix of the names of manifest lists, in iceberg-go as in Java.
const listPrefix, listSuffix = "snap-", ".avro"

// isManifestList reports whether a file is a manifest list, by its name.
func isManifestList(name string) bool {
	base := path.Base(name)
	return strings.HasPrefix(base, listPrefix) && strings.HasSuffix(base, listSuffix)
}

// manifestList is a manifest list that is being written. It is buffered until Close, which adds
// missing bounds. iceberg-go omits the bound of a partition field if it is an empty string or empty
// bytes. Readers conclude that all values are null, and skip the manifest.
type manifestList struct {
	bytes.Buffer
	out   io.FileWriter
	files io.IO // where its manifests are
}

// Close implements io.Closer.
func (l *manifestList) Close() error {
	content, err := withBounds(l.Bytes(), l.files)
	if err == nil {
		_, err = l.out.Write(content)
	}
	return errors.Join(err, l.out.Close())
}

// MissingBounds reports whether the summary of a manifest lacks such bounds. Earlier versions wrote
// lists like this.
func MissingBounds(m iceberg.ManifestFile, files io.IO) (bool, error) {
	fields, err := missingBounds(m, files, true)
	return len(fields) > 0, err
}

// withBounds returns a manifest list with its missing bounds, or unchanged if none are missing.
func withBounds(list []byte, files io.IO) ([]byte, error) {
	fail := func(err error) ([]byte, error) {
		return nil, fmt.Errorf("check bounds in manifest list: %w", err)
	}
	manifests, err := iceberg.ReadManifestList(bytes.NewReader(list))
	if err != nil {
		return fail(err)
	}
	r, err := ocf.NewReader(bytes.NewReader(list))
	if err != nil {
		return fail(err)
	}
	snapshot := string(r.Metadata()["snapshot-id"])
	missing := make([][]int, len(manifests))
	for i, m := range manifests {
		if missing[i], err = missingBounds(m, files, strconv.FormatInt(m.SnapshotID(), 10) == snapshot); err != nil {
			return fail(err)
		}
	}
	if !slices.ContainsFunc(missing, func(fields []int) bool { return len(fields) > 0 }) {
		return list, nil
	}
	// Entries that begin with avro. are written by the writer itself.
	meta := map[string][]byte{}
	for key, value := range r.Metadata() {
		if !strings.HasPrefix(key, "avro.") {
			meta[key] = value
		}
	}
	var out bytes.Buffer
	// Copy schema and metadata, so that nothing but the bounds changes.
	w, err := ocf.NewWriter(&out, r.Schema(),
		ocf.WithSchema(string(r.Metadata()["avro.schema"])), ocf.WithMetadata(meta),
		ocf.WithCodec(ocf.DeflateCodec(-1)))
	if err != nil {
		return fail(err)
	}
	for _, fields := range missing {
		var entry map[string]any
		if err := r.Decode(&entry); err != nil {
			return fail(err)
		}
		if err := putBounds(entry, fields); err != nil {
			return fail(err)
		}
		if err := w.Encode(entry); err != nil {
			return fail(err)
		}
	}
	if err := w.Close(); err != nil {
		return fail(err)
	}
	return out.Bytes(), nil
}

// putBounds sets the missing bounds of the given partition fields to empty bytes.
func putBounds(entry map[string]any, fields []int) error {
	summaries, _ := entry["partitions"].([]any)
	for _, i := range fields {
		if i >= len(summaries) {
			return fmt.Errorf("the manifest has only %d summaries of partition fields", len(summaries))
		}
		summary, ok := summaries[i].(map[string]any)
		if !ok {
			return fmt.Errorf("the summary of a partition field is a %T", summaries[i])
		}
		for _, bound := range []string{"lower_bound", "upper_bound"} {
			if summary[bound] == nil {
				summary[bound] = []byte{}
			}
		}
	}
	return nil
}

// missingBounds returns the indices of partition fields whose empty bound is missing. If both
// bounds are missing, all values may be null, and only the manifest itself can tell. It is then
// read if fresh is set, which means that the list's own snapshot added it: older manifests got
// their bounds in earlier lists.
func missingBounds(m iceberg.ManifestFile, files io.IO, fresh bool) (fields []int, err error) {
	var open []int // fields for which the manifest has to be read
	for i, s := range m.Partitions() {
		switch {
		case s.LowerBound != nil:
		case s.UpperBound != nil:
			fields = append(fields, i)
		case s.ContainsNaN != nil && *s.ContainsNaN:
		case fresh || !s.ContainsNull:
			open = append(open, i)
		}
	}
	if len(open) == 0 {
		return fields, nil
	}
	empty, err := emptyPartitions(m, files)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", m.FilePath(), err)
	}
	for _, i := range open {
		if empty[i] {
			fields = append(fields, i)
		}
	}
	return fields, nil
}

// emptyPartitions returns the partition fields that have an empty string or empty bytes among their
// values.
func emptyPartitions(m iceberg.ManifestFile, files io.IO) (empty map[int]bool, err error) {
	f, err := files.Open(m.FilePath())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	r, err := iceberg.NewManifestReader(m, f)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	spec, err := r.PartitionSpec()
	if err != nil {
		return nil, err
	}
	empty = map[int]bool{}
	for {
		e, err := r.ReadEntry()
		if errors.Is(err, stdio.EOF) {
			return empty, nil
		}
		if err != nil {
			return nil, err
		}
		values := e.DataFile().Partition()
		for i := range spec.NumFields() {
			switch v := values[spec.Field(i).FieldID].(type) {
			case string:
				empty[i] = empty[i] || v == ""
			case []byte:
				empty[i] = empty[i] || len(v) == 0
			}
		}
	}
}
