package feast

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/gen/feast/core"
)

// registrySchema is the version of the registry's format that Feast's clients expect.
const registrySchema = "1"

// valueTypes are Feast's types of the results.
var valueTypes = map[exact.ResultKind]core.ValueType{exact.IntResult: core.ValueType_INT64,
	exact.FloatResult: core.ValueType_DOUBLE, exact.TextResult: core.ValueType_STRING,
	exact.TextsResult: core.ValueType_STRING_LIST}

// Registry returns the registry of the groups as Feast keeps it in a file: an entity for each key, and
// for each group a feature view and a feature service of its name. The views have no data source,
// because nothing is materialized: values come from the log. The same definitions give the same bytes.
func Registry(project string, groups []*features.Group) ([]byte, error) {
	r := &core.Registry{RegistrySchemaVersion: registrySchema}
	r.Projects = append(r.Projects, &core.Project{Spec: &core.ProjectSpec{Name: project,
		Description: "feature groups of Millrace"}})
	keys := map[string]bool{}
	for _, g := range groups {
		if !keys[g.Entity] {
			keys[g.Entity] = true
			r.Entities = append(r.Entities, &core.Entity{Spec: &core.EntitySpecV2{Name: g.Entity, JoinKey: g.Entity,
				Project: project, ValueType: core.ValueType_STRING}})
		}
		var columns []*core.FeatureSpecV2
		for _, o := range g.Outputs() {
			columns = append(columns, &core.FeatureSpecV2{Name: o.Name, ValueType: valueTypes[o.Kind],
				Description: o.Feature.Description})
		}
		r.FeatureViews = append(r.FeatureViews, &core.FeatureView{Spec: &core.FeatureViewSpec{
			Name: g.Name, Project: project, Entities: []string{g.Entity}, Features: columns, Online: true,
			EntityColumns: []*core.FeatureSpecV2{{Name: g.Entity, ValueType: core.ValueType_STRING}},
			Description:   g.Description, Owner: g.Owner, Tags: map[string]string{"millrace_group": g.ID()},
		}})
		r.FeatureServices = append(r.FeatureServices, &core.FeatureService{Spec: &core.FeatureServiceSpec{
			Name: g.Name, Project: project, Description: g.Description, Owner: g.Owner,
			Features: []*core.FeatureViewProjection{{FeatureViewName: g.Name, FeatureColumns: columns,
				ViewType: "featureView"}},
		}})
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode the registry: %w", err)
	}
	return b, nil
}

// Repository says where a Feast client finds what it needs.
type Repository struct {
	Project  string
	Registry string // path of the registry's file
	Online   string // URL of the online store, which features/serving serves
	Offline  string // host:port of the offline store
	TLS      bool   // both stores use TLS
	Tokens   bool   // both stores require a token
}

// Settings returns feature_store.yaml.
func (r Repository) Settings() (string, error) {
	host, port, err := net.SplitHostPort(r.Offline)
	if err != nil {
		return "", fmt.Errorf("address of the offline store: %w", err)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return "", fmt.Errorf("address of the offline store: port %q: want a number", port)
	}
	if strings.Contains(host, ":") { // IPv6
		host = "[" + host + "]"
	}
	type remote struct {
		Type   string `yaml:"type"`
		Path   string `yaml:"path,omitempty"`
		Scheme string `yaml:"scheme,omitempty"`
		Host   string `yaml:"host,omitempty"`
		Port   uint64 `yaml:"port,omitempty"`
		Cert   string `yaml:"cert,omitempty"`
	}
	type auth struct {
		Type  string `yaml:"type"`
		Token string `yaml:"token_env_var"`
	}
	settings := struct {
		Project  string `yaml:"project"`
		Provider string `yaml:"provider"`
		Registry string `yaml:"registry"`
		Online   remote `yaml:"online_store"`
		Offline  remote `yaml:"offline_store"`
		Auth     *auth  `yaml:"auth,omitempty"`
		Keys     int    `yaml:"entity_key_serialization_version"`
	}{
		Project: r.Project, Provider: "local", Registry: r.Registry, Keys: 3,
		Online:  remote{Type: "remote", Path: r.Online},
		Offline: remote{Type: "remote", Host: host, Port: number},
	}
	if r.TLS {
		settings.Offline.Scheme = "https"
		settings.Online.Cert, settings.Offline.Cert = certificate, certificate
	}
	if r.Tokens {
		settings.Auth = &auth{"oidc", tokenVariable}
	}
	var b strings.Builder
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := errors.Join(e.Encode(settings), e.Close()); err != nil {
		return "", fmt.Errorf("encode feature_store.yaml: %w", err)
	}
	return b.String(), nil
}

// Names in feature_store.yaml.
const (
	certificate   = "ca.crt"              // the certificate of the CA that signed the server's
	tokenVariable = "MILLRACE_AUTH_TOKEN" //nolint:gosec // the name of a variable with a token
)
