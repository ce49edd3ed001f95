package restcatalog

import "testing"

// Manifests of a table can name any file. Only files in the warehouse are read and deleted.
func TestWarehouseHas(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"file:///data/ware house", "s3://bucket/ware house"} {
		w, err := openWarehouse(at, Storage{})
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]bool{
			at + "/n.db/t/data/f.parquet": true, at + "/n.db/t/data/day=2026%2F01/f.parquet": true, w.escaped + "/n.db/t/f.avro": true,
			at + "/../f": false, at + "/%2e%2e/f": false, at + "/a%2f..%2f..%2ff": false, at: false, at + "2/f": false, "/etc/passwd": false,
			"file:///etc/passwd": false, "s3://other/ware house/f": false, "f": false, "": false,
		} {
			if w.has(name) != want {
				t.Errorf("%q in %q: %v", name, at, !want)
			}
		}
	}
}
