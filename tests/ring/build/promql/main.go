// Promql evaluates one expression with Prometheus' own engine over the samples that come with it, JSON in, JSON out; with the
// argument "rules" it reads a rule file instead, as Prometheus does when it loads one.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

// Times are seconds.
type request struct {
	Expression string   `json:"expression"`
	Time       float64  `json:"time"`
	Series     []series `json:"series"`
}

type series struct {
	Labels  map[string]string `json:"labels"`
	Samples [][2]float64      `json:"samples"`
}

// Metrics are those that the expression names; values are strings, since JSON has no NaN.
type answer struct {
	Metrics  []string  `json:"metrics"`
	Elements []element `json:"elements"`
	Warnings []string  `json:"warnings"`
}

type element struct {
	Labels map[string]string `json:"labels"`
	Value  string            `json:"value"`
}

func main() {
	serve := answerOne
	if len(os.Args) > 1 && os.Args[1] == "rules" {
		serve = load
	}
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func load() error {
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	_, wrong := rulefmt.Parse(text, false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.Default())
	return errors.Join(wrong...)
}

func answerOne() error {
	var asked request
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		return err
	}
	said, err := evaluate(asked)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(said)
}

func evaluate(asked request) (answer, error) {
	said := answer{Metrics: []string{}, Elements: []element{}, Warnings: []string{}}
	expression, err := parser.NewParser(parser.Options{}).ParseExpr(asked.Expression)
	if err != nil {
		return said, err
	}
	parser.Inspect(expression, func(node parser.Node, _ []parser.Node) error {
		if selector, ok := node.(*parser.VectorSelector); ok && !slices.Contains(said.Metrics, selector.Name) {
			said.Metrics = append(said.Metrics, selector.Name)
		}
		return nil
	})
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1_000_000, Timeout: time.Minute, LookbackDelta: 5 * time.Minute})
	defer engine.Close()
	moment := time.UnixMilli(int64(asked.Time * 1000))
	query, err := engine.NewInstantQuery(context.Background(), memory(asked.Series), nil, asked.Expression, moment)
	if err != nil {
		return said, err
	}
	defer query.Close()
	result := query.Exec(context.Background())
	if result.Err != nil {
		return said, result.Err
	}
	for _, warning := range result.Warnings.AsErrors() {
		said.Warnings = append(said.Warnings, warning.Error())
	}
	switch found := result.Value.(type) {
	case promql.Vector:
		for _, sample := range found {
			said.Elements = append(said.Elements, element{sample.Metric.Map(), number(sample.F)})
		}
	case promql.Scalar:
		said.Elements = append(said.Elements, element{map[string]string{}, number(found.V)})
	default:
		return said, fmt.Errorf("a %s is no value of one moment", found.Type())
	}
	return said, nil
}

func number(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }

type memory []series

func (m memory) Querier(_, _ int64) (storage.Querier, error) { return m, nil }

func (m memory) Select(_ context.Context, _ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	var found []storage.Series
	for _, one := range m {
		known := labels.FromMap(one.Labels)
		if !slices.ContainsFunc(matchers, func(matcher *labels.Matcher) bool { return !matcher.Matches(known.Get(matcher.Name)) }) {
			samples := make([]chunks.Sample, len(one.Samples))
			for i, at := range one.Samples {
				samples[i] = point{int64(at[0] * 1000), at[1]}
			}
			found = append(found, storage.NewListSeries(known, samples))
		}
	}
	return &set{found: found, at: -1}
}

func (memory) LabelValues(context.Context, string, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

func (memory) LabelNames(context.Context, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

func (memory) Close() error { return nil }

type set struct {
	found []storage.Series
	at    int
}

func (s *set) Next() bool                      { s.at++; return s.at < len(s.found) }
func (s *set) At() storage.Series              { return s.found[s.at] }
func (*set) Err() error                        { return nil }
func (*set) Warnings() annotations.Annotations { return nil }

type point struct {
	milliseconds int64
	value        float64
}

func (p point) T() int64                    { return p.milliseconds }
func (point) ST() int64                     { return 0 }
func (p point) F() float64                  { return p.value }
func (point) H() *histogram.Histogram       { return nil }
func (point) FH() *histogram.FloatHistogram { return nil }
func (point) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (p point) Copy() chunks.Sample         { return p }
