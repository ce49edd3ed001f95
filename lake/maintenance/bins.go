package maintenance

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"
)

// bin is a set of files of one partition that are rewritten together.
type bin struct {
	spec      int32
	partition map[int]any
	tasks     []table.FileScanTask
	bytes     int64
	fileBytes int64 // size at which an output file is complete
}

// plan is what a compaction would do to one state of a table.
type plan struct {
	table *table.Table // the state that the plan is based on
	bins  []bin
	files int // data files in the table
	bytes int64
}

// planCompaction chooses the files to rewrite. The rules, per partition:
//
//   - Small files are rewritten if there are SmallFiles of them, or if together they make a file
//     that is not small. The largest ones are left out while they outweigh all the others together.
//     So a rewritten row moves to a file at least twice as large, and is rewritten log2(target /
//     first size) times instead of in every run.
//   - Files with position deletes are rewritten if the deletes cover 30 % of the rows, or if there
//     are 8 delete files.
//   - Files with equality deletes are rewritten all together if the deletes are DeleteShare of the
//     rows, or if there are DeleteFiles delete files. An equality delete is only dead once the last
//     older file has been rewritten.
//
// iceberg-go's PlanCompaction does not leave out the largest of the small files, so it would
// rewrite a growing file in every run. It also decides on equality deletes for each file
// separately.
//
// Young files are not exempt: appends never conflict with a rewrite, only position deletes do.
func (r *run) planCompaction(ctx context.Context, t *table.Table) (plan, error) {
	p := plan{table: t}
	if t.CurrentSnapshot() == nil {
		return p, nil
	}
	tasks, err := t.Scan().PlanFiles(ctx)
	if err != nil {
		return plan{}, fmt.Errorf("list data files: %w", err)
	}
	p.files = len(tasks)
	partitions := map[string][]table.FileScanTask{}
	// Bins never mix partitions or partition specs, because a data file belongs to one.
	for _, task := range tasks {
		p.bytes += task.File.FileSizeBytes()
		if task.File.FileFormat() != iceberg.ParquetFile {
			continue // only Parquet is supported here
		}
		key := partitionKey(task.File)
		partitions[key] = append(partitions[key], task)
	}
	// In a fixed order, so that runs are reproducible.
	for _, key := range slices.Sorted(maps.Keys(partitions)) {
		p.bins = append(p.bins, r.pack(r.choose(partitions[key]))...)
	}
	return p, nil
}

// partitionKey returns a map key for a partition of a spec.
func partitionKey(f iceberg.DataFile) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d", f.SpecID())
	// Values by field id, in a fixed order, with their Go types.
	values := f.Partition()
	for _, id := range slices.Sorted(maps.Keys(values)) {
		fmt.Fprintf(&b, "/%d=%#v", id, values[id])
	}
	return b.String()
}

// Thresholds for position deletes: share of a file's rows, and number of delete files.
const (
	positionShare = 0.3
	positionFiles = 8
)

// choose selects the files of one partition that are worth a rewrite.
func (r *run) choose(tasks []table.FileScanTask) []table.FileScanTask {
	equality := map[string]int64{} // number of keys by delete file
	var rows int64                 // rows in files that the deletes apply to
	// A delete file may apply to several tasks: count its keys once.
	for _, task := range tasks {
		for _, d := range task.EqualityDeleteFiles {
			equality[d.FilePath()] = d.Count()
		}
		if len(task.EqualityDeleteFiles) > 0 {
			rows += task.File.Count()
		}
	}
	var deletes int64
	for _, n := range equality {
		deletes += n
	}
	// Decide for the partition as a whole: a delete file is only dead after every file that it
	// applies to has been rewritten.
	rewriteDeleted := len(equality) >= r.DeleteFiles ||
		len(equality) > 0 && float64(deletes) >= r.DeleteShare*float64(rows)

	var chosen, small []table.FileScanTask
	for _, task := range tasks {
		switch {
		case rewriteDeleted && len(task.EqualityDeleteFiles) > 0 || manyPositions(task):
			chosen = append(chosen, task)
		case task.File.FileSizeBytes() < r.small():
			small = append(small, task)
		}
	}
	if len(chosen) > 0 {
		return append(chosen, small...) // small files add little cost, and one commit serves all
	}
	// Leave out the largest small file while it outweighs the others: rewriting it would move its
	// rows to a file that is not twice as large.
	slices.SortFunc(small, func(a, b table.FileScanTask) int {
		return cmp.Compare(a.File.FileSizeBytes(), b.File.FileSizeBytes())
	})
	var total int64
	for _, task := range small {
		total += task.File.FileSizeBytes()
	}
	for len(small) >= 2 {
		largest := small[len(small)-1].File.FileSizeBytes()
		if total >= r.small() || 2*largest <= total {
			break
		}
		small, total = small[:len(small)-1], total-largest
	}
	// Worthwhile if there are many files, or if the result is a file that is not small.
	if len(small) >= r.SmallFiles || len(small) >= 2 && total >= r.small() {
		return small
	}
	return nil
}

// manyPositions reports whether a file has enough position deletes for a rewrite.
func manyPositions(task table.FileScanTask) bool {
	var rows int64
	for _, d := range slices.Concat(task.DeleteFiles, task.DeletionVectorFiles) {
		rows += d.Count()
	}
	return len(task.DeleteFiles) >= positionFiles ||
		rows > 0 && float64(rows) >= positionShare*float64(task.File.Count())
}

// pack divides the files of a partition into bins of similar size, in the order in which their rows
// were added.
func (r *run) pack(tasks []table.FileScanTask) []bin {
	if len(tasks) == 0 {
		return nil
	}
	// In commit order, so that rows of unsorted tables keep their order, and each bin covers a span
	// of time.
	slices.SortStableFunc(tasks, func(a, b table.FileScanTask) int {
		return cmp.Or(cmp.Compare(sequence(a), sequence(b)), cmp.Compare(a.File.FilePath(), b.File.FilePath()))
	})
	var total int64
	for _, task := range tasks {
		total += task.File.FileSizeBytes()
	}
	// The number of bins follows from the maximum size, and the bytes are divided evenly among
	// them.
	maxBytes := binTargets * r.TargetBytes
	count := (total + maxBytes - 1) / maxBytes
	var bins []bin
	var b bin
	for i, task := range tasks {
		b.tasks = append(b.tasks, task)
		b.bytes += task.File.FileSizeBytes()
		if i == len(tasks)-1 || b.bytes >= total/count {
			b.spec, b.partition = tasks[0].File.SpecID(), tasks[0].File.Partition()
			// Divide the bytes evenly, so that no full file is followed by a nearly empty one. The
			// extra 5 % allow for inaccurate estimates.
			files := max(1, (b.bytes+r.TargetBytes/2)/r.TargetBytes)
			b.fileBytes = max(r.TargetBytes, b.bytes/files+b.bytes/files/20)
			bins = append(bins, b)
			b = bin{}
		}
	}
	return bins
}

// sequence returns a file's data sequence number, which orders files by when their rows were added.
func sequence(task table.FileScanTask) int64 {
	if task.DataSequenceNumber == nil {
		return 0
	}
	return *task.DataSequenceNumber
}

// pieceBytes is the approximate size of the pieces in which a data file is read. Pieces end at row
// groups, whose offsets writers may record.
const pieceBytes = 16 << 20

// pieces splits a task, so that the reader holds a few row groups in memory instead of a whole
// file.
func pieces(task table.FileScanTask) []table.FileScanTask {
	size := task.File.FileSizeBytes()
	// A task that is already part of a file is not split again.
	if size <= pieceBytes || task.Start != 0 || task.Length != 0 && task.Length != size {
		return []table.FileScanTask{task}
	}
	// Offsets come from other writers, too: without valid ones, read the file in one piece.
	offsets := task.File.SplitOffsets()
	for i, o := range offsets {
		if o < 0 || o >= size || i > 0 && o <= offsets[i-1] {
			return []table.FileScanTask{task}
		}
	}
	var all []table.FileScanTask
	begin := int64(0)
	for i := 1; i <= len(offsets); i++ {
		// A piece ends at the first offset that makes it large enough, or at the end of the file.
		end := size
		if i < len(offsets) {
			end = offsets[i]
		}
		if i == len(offsets) || end-begin >= pieceBytes {
			piece := task
			piece.Start, piece.Length = begin, end-begin
			all = append(all, piece)
			begin = end
		}
	}
	if len(all) == 0 {
		return []table.FileScanTask{task}
	}
	return all
}
