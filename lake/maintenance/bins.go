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

// bin is files of one partition that are rewritten together: read in one order, written in another.
type bin struct {
	spec      int32
	partition map[int]any
	tasks     []table.FileScanTask
	bytes     int64
	fileBytes int64 // where a file is full
}

// plan is what a compaction would do to one state of a table.
type plan struct {
	table *table.Table // as it was; its head is the base
	bins  []bin
	files int // in the table
	bytes int64
}

// planCompaction chooses the files to rewrite. The rules, for each partition:
//
//   - Small files are rewritten where there are SmallFiles of them, or enough bytes for a file that is not small any more.
//     The largest of them are left out as long as they outweigh all the others together. So a row that is rewritten ends in
//     a file at least twice as large as the one it was in: it is rewritten log2(target / first size) times, not once per run.
//   - Files with deletes by position are rewritten where those are 30 % of the rows, or 8 files.
//   - Files with deletes by equality are all rewritten where the deletes are DeleteShare of the rows, or DeleteFiles files:
//     only when the last file older than such a delete is rewritten the delete is dead.
//
// iceberg-go's PlanCompaction has no rule that leaves out the largest of the small files, so a
// growing file is rewritten in every run. It also decides on equality deletes for each file by
// itself.
//
// Young files are not left alone: appends never conflict with a rewrite, only deletes by position
// do.
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
	for _, task := range tasks {
		p.bytes += task.File.FileSizeBytes()
		if task.File.FileFormat() != iceberg.ParquetFile {
			continue // can be read by nobody here
		}
		key := partitionKey(task.File)
		partitions[key] = append(partitions[key], task)
	}
	for _, key := range slices.Sorted(maps.Keys(partitions)) {
		p.bins = append(p.bins, r.pack(r.choose(partitions[key]))...)
	}
	return p, nil
}

// partitionKey names a partition, of one spec.
func partitionKey(f iceberg.DataFile) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d", f.SpecID())
	values := f.Partition()
	for _, id := range slices.Sorted(maps.Keys(values)) {
		fmt.Fprintf(&b, "/%d=%#v", id, values[id])
	}
	return b.String()
}

const (
	positionShare = 0.3
	positionFiles = 8
)

// choose picks the files of one partition that are worth a rewrite.
func (r *run) choose(tasks []table.FileScanTask) []table.FileScanTask {
	equality := map[string]int64{} // rows by delete file
	var rows int64                 // that they may delete
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
	rid := len(equality) >= r.DeleteFiles || len(equality) > 0 && float64(deletes) >= r.DeleteShare*float64(rows)

	var chosen, small []table.FileScanTask
	for _, task := range tasks {
		switch {
		case rid && len(task.EqualityDeleteFiles) > 0 || manyPositions(task):
			chosen = append(chosen, task)
		case task.File.FileSizeBytes() < r.small():
			small = append(small, task)
		}
	}
	if len(chosen) > 0 {
		return append(chosen, small...) // they are cheap to take along, and one commit serves both
	}
	slices.SortFunc(small, func(a, b table.FileScanTask) int { return cmp.Compare(a.File.FileSizeBytes(), b.File.FileSizeBytes()) })
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
	if len(small) >= r.SmallFiles || len(small) >= 2 && total >= r.small() {
		return small
	}
	return nil
}

func manyPositions(task table.FileScanTask) bool {
	var rows int64
	for _, d := range slices.Concat(task.DeleteFiles, task.DeletionVectorFiles) {
		rows += d.Count()
	}
	return len(task.DeleteFiles) >= positionFiles || rows > 0 && float64(rows) >= positionShare*float64(task.File.Count())
}

// pack divides the files of a partition into bins of about the same size, in the order in which the
// rows were added.
func (r *run) pack(tasks []table.FileScanTask) []bin {
	if len(tasks) == 0 {
		return nil
	}
	slices.SortStableFunc(tasks, func(a, b table.FileScanTask) int {
		return cmp.Or(cmp.Compare(sequence(a), sequence(b)), cmp.Compare(a.File.FilePath(), b.File.FilePath()))
	})
	var total int64
	for _, task := range tasks {
		total += task.File.FileSizeBytes()
	}
	most := binTargets * r.TargetBytes
	count := (total + most - 1) / most
	var bins []bin
	var b bin
	for i, task := range tasks {
		b.tasks = append(b.tasks, task)
		b.bytes += task.File.FileSizeBytes()
		if i == len(tasks)-1 || b.bytes >= total/count {
			b.spec, b.partition = tasks[0].File.SpecID(), tasks[0].File.Partition()
			// The bytes are divided evenly: no file shall be full and the next one nearly empty.
			files := max(1, (b.bytes+r.TargetBytes/2)/r.TargetBytes)
			b.fileBytes = max(r.TargetBytes, b.bytes/files+b.bytes/files/20)
			bins = append(bins, b)
			b = bin{}
		}
	}
	return bins
}

func sequence(task table.FileScanTask) int64 {
	if task.DataSequenceNumber == nil {
		return 0
	}
	return *task.DataSequenceNumber
}

// Data files are read in pieces of about this size, where their writer noted where row groups
// begin.
const pieceBytes = 16 << 20

// pieces divides a task so that reading holds a few row groups at a time, not a file.
func pieces(task table.FileScanTask) []table.FileScanTask {
	size := task.File.FileSizeBytes()
	if size <= pieceBytes || task.Start != 0 || task.Length != 0 && task.Length != size {
		return []table.FileScanTask{task}
	}
	offsets := task.File.SplitOffsets()
	for i, o := range offsets {
		if o < 0 || o >= size || i > 0 && o <= offsets[i-1] {
			return []table.FileScanTask{task}
		}
	}
	var all []table.FileScanTask
	begin := int64(0)
	for i := 1; i <= len(offsets); i++ {
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
