package kafka

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
)

// kfake keeps its settings in JSON files without checksums. It does not start if one cannot be
// parsed. It takes a missing one as empty, and without meta.json or topics.json, it takes the log
// as empty. So each file is checked before kfake reads it. Files that can be recreated are set
// aside and recreated. topics.json has a copy; see topics.go.

const (
	metaFile  = "meta.json"
	clusterID = "millrace"
	// formatVersion is the version of kfake's files.
	formatVersion = 1
)

// settingsFiles are the files that the broker can do without, each with the check that kfake can
// parse it. The broker has no access control and no quotas, even if clients have configured some,
// and brokerConfigs override broker_configs.json.
var settingsFiles = map[string]func([]byte) error{
	"broker_configs.json": parsesAs[struct {
		Configs map[string]string `json:"configs"`
	}],
	"acls.json": parsesAs[struct {
		ACLs []struct {
			Principal    string `json:"principal"`
			Host         string `json:"host"`
			ResourceType int8   `json:"resource_type"`
			ResourceName string `json:"resource_name"`
			Pattern      int8   `json:"pattern"`
			Operation    int8   `json:"operation"`
			Permission   int8   `json:"permission"`
		} `json:"acls"`
	}],
	"sasl.json": parsesAs[struct {
		Plain    map[string]string `json:"plain"`
		Scram256 map[string]scram  `json:"scram256"`
		Scram512 map[string]scram  `json:"scram512"`
	}],
	"quotas.json": parsesAs[struct {
		Quotas []struct {
			Entity []struct {
				Type string  `json:"type"`
				Name *string `json:"name"`
			} `json:"entity"`
			Values map[string]float64 `json:"values"`
		} `json:"quotas"`
	}],
}

// scram is the credential of one user in sasl.json.
type scram struct {
	Mechanism  string `json:"mechanism"`
	Salt       []byte `json:"salt"`
	SaltedPass []byte `json:"salted_pass"`
	Iterations int    `json:"iterations"`
}

// parsesAs returns an error if kfake could not parse the JSON.
func parsesAs[T any](raw []byte) error {
	var file struct {
		Version int `json:"version"`
	}
	return errors.Join(json.Unmarshal(raw, &file), json.Unmarshal(raw, new(T)))
}

// checkSettings checks all settings files and sets damaged ones aside. No broker may be running.
// last is nil after a kill.
func checkSettings(dir string, last *cleanStop, log *slog.Logger) error {
	// A nil last accepts any content that parses.
	for name, parsesAs := range settingsFiles {
		raw, err := os.ReadFile(filepath.Join(dir, name)) //nolint:gosec // our own directory
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := errors.Join(parsesAs(raw), last.changed(name, raw)); err != nil {
			if err := setAside(filepath.Join(dir, name), log, err, "the defaults"); err != nil {
				return err
			}
		}
	}
	if err := checkTopics(dir, last, log); err != nil {
		return err
	}
	return checkMeta(dir, log)
}

// checkMeta recreates meta.json if it is damaged, or missing in a log that is not empty. All of its
// content is known.
func checkMeta(dir string, log *slog.Logger) error {
	name := filepath.Join(dir, metaFile)
	var meta struct {
		Version   int    `json:"version"`
		ClusterID string `json:"cluster_id"`
	}
	raw, err := os.ReadFile(name) //nolint:gosec // our own directory
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Stat(filepath.Join(dir, topicsFile)); errors.Is(err, fs.ErrNotExist) {
			return nil // an empty log
		}
		log.Warn("embedded kafka: a file of the log is missing; recreating it", "file", name)
	case err != nil:
		return err
	default:
		err = json.Unmarshal(raw, &meta)
		if err == nil && meta.Version > formatVersion {
			return &DamageError{
				name, fmt.Sprintf("its format version is %d, but this version of Millrace supports %d", meta.Version,
					formatVersion),
				"start the newer version of Millrace that wrote it, or remove the file if there was none",
			}
		}
		if err == nil && meta.Version == formatVersion && meta.ClusterID == clusterID {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("version %d of cluster %q", meta.Version, meta.ClusterID)
		}
		if err := setAside(name, log, err, "a new one"); err != nil {
			return err
		}
	}
	// The file is missing or was set aside.
	meta.Version, meta.ClusterID = formatVersion, clusterID
	raw, err = json.Marshal(meta)
	if err != nil {
		return err
	}
	return writeFile(name, raw)
}
