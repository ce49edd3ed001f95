package catalog

const childDir = "MILLRACE_TEST_CATALOG_CHILD"

func child(string) int { return 0 }
