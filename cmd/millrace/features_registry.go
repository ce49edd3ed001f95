package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/features/feast"
)

// newFeaturesRegistry returns the command features registry.
func newFeaturesRegistry(a *cli) *cobra.Command {
	var out string
	var r feast.Repository
	cmd := &cobra.Command{
		Use:   "registry",
		Short: "Write the registry and the settings that Feast's clients need",
		Long: `Write the registry of Feast that describes the feature groups, and print the feature_store.yaml that goes
with it. With both files in a folder, FeatureStore(FOLDER) reads vectors (get_online_features) and builds training
sets (get_historical_features) without any definition of its own: each group is a feature view and a feature service
of its name.

The addresses are those of the configuration (features.feast_addr and features.feast_offline_addr), unless flags
name those by which clients reach them. If --addr or --admin-addr names another system, its addresses are needed,
too: they are in its "millrace status". Write the registry again after an upgrade that changes the groups.`,
		Example: `  millrace features registry --out registry.db > feature_store.yaml
  millrace features registry --out registry.db --online https://features:6566 --offline features:8815`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&out, "out", "", "file to write the registry to")
	cmd.Flags().StringVar(&r.Project, "project", "millrace", "name of the project in Feast")
	cmd.Flags().StringVar(&r.Online, "online", "", "URL of the online store")
	cmd.Flags().StringVar(&r.Offline, "offline", "", "HOST:PORT of the offline store")
	if err := cmd.MarkFlagRequired("out"); err != nil {
		panic(err) // unreachable: the flag is defined above
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.loadConfig()
		if err != nil {
			return err
		}
		other := cmd.Flags().Changed("addr") || cmd.Flags().Changed("admin-addr")
		if other && (r.Online == "" || r.Offline == "") {
			return errors.New("--addr and --admin-addr do not say where that system serves Feast's clients: name --online " +
				"and --offline, too (`millrace status` of that system has the addresses millrace feast and millrace feast_offline)")
		}
		groups, err := a.groups()
		if err != nil {
			return err
		}
		live, err := a.liveVersions(cmd.Context(), groups)
		if err != nil {
			return err
		}
		scheme := "http://"
		if r.TLS = c.TLS.Cert != ""; r.TLS {
			scheme = "https://"
		}
		r.Tokens = c.Auth.Tokens != ""
		r.Registry = filepath.Base(out)
		r.Online = cmp.Or(r.Online, scheme+c.Features.FeastAddr)
		r.Offline = cmp.Or(r.Offline, c.Features.FeastOfflineAddr)
		settings, err := r.Settings()
		if err != nil {
			return err
		}
		registry, err := feast.Registry(r.Project, liveGroups(groups, live))
		if err != nil {
			return err
		}
		if err := replace(out, registry); err != nil {
			return fmt.Errorf("--out: %w", err)
		}
		fmt.Fprint(cmd.OutOrStdout(), settings)
		return nil
	}
	return cmd
}

// replace writes a file that others may read meanwhile: they see the old content or the new one.
func replace(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
