package plot

import (
	"fmt"
	"image/color"
	"io"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"

	"github.com/millrace/millrace/features/quality"
)

const (
	// side is the size of a picture. At vgimg's resolution, it has 960 × 960 pixels.
	side = 10 * vg.Inch
	// headroom is for the legend above the values.
	headroom = 1.3
)

var (
	currentColor   = color.RGBA{R: 0x1f, G: 0x5f, B: 0x99, A: 0xff}
	referenceColor = color.RGBA{R: 0xbd, G: 0xbd, B: 0xbd, A: 0xff}
	outerColor     = color.RGBA{R: 0xd6, G: 0xe4, B: 0xf0, A: 0xff} // from 5 % to 95 %
	innerColor     = color.RGBA{R: 0x9c, G: 0xc1, B: 0xe0, A: 0xff} // from 25 % to 75 %
	lineColors     = []color.Color{currentColor, color.RGBA{R: 0xd9, G: 0x5f, A: 0xff},
		color.RGBA{R: 0x1b, G: 0x9e, B: 0x77, A: 0xff}, color.RGBA{R: 0x75, G: 0x70, B: 0xb3, A: 0xff},
		color.RGBA{R: 0x66, G: 0x66, B: 0x66, A: 0xff}}
)

// PNG draws a picture: above, the distribution beside the reference, and below, its quantiles or its
// most frequent texts over the days.
func PNG(w io.Writer, r *quality.Report, m *quality.Measured) error {
	above, err := histogram(r, m)
	if err != nil {
		return fmt.Errorf("draw the distribution: %w", err)
	}
	below, err := overTime(r, m)
	if err != nil {
		return fmt.Errorf("draw the days: %w", err)
	}
	img := vgimg.New(side, side)
	canvas := draw.New(img)
	margin := vg.Points(12)
	canvases := plot.Align([][]*plot.Plot{{above}, {below}}, draw.Tiles{Rows: 2, Cols: 1, PadTop: margin,
		PadBottom: margin, PadLeft: margin, PadRight: margin, PadY: margin}, canvas)
	above.Draw(canvases[0][0])
	below.Draw(canvases[1][0])
	_, err = vgimg.PngCanvas{Canvas: img}.WriteTo(w)
	return err
}

// histogram draws the shares of the current values beside those of the reference.
func histogram(r *quality.Report, m *quality.Measured) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text, p.Y.Label.Text, p.Y.Min = title(r, m), "share of the entities, %", 0
	all := bars(m)
	if len(all) == 0 {
		p.X.Label.Text = "no entity of the sample has facts"
		return p, nil
	}
	names, current, reference := make([]string, len(all)), make(plotter.Values, len(all)), make(plotter.Values, len(all))
	for i, b := range all {
		names[i], current[i], reference[i] = b.label, 100*b.current, 100*b.reference
	}
	width := vg.Points(280) / vg.Length(len(all))
	for _, s := range []struct {
		values plotter.Values
		color  color.Color
		offset vg.Length
		name   string
	}{{current, currentColor, -width / 2, "now"}, {reference, referenceColor, width / 2, "reference"}} {
		chart, err := plotter.NewBarChart(s.values, width)
		if err != nil {
			return nil, err
		}
		chart.Color, chart.Offset, chart.LineStyle.Width = s.color, s.offset, 0
		p.Add(chart)
		p.Legend.Add(s.name, chart)
	}
	p.Y.Max *= headroom
	p.Legend.Top = true
	p.NominalX(names...)
	p.X.Tick.Label.Rotation, p.X.Tick.Label.XAlign, p.X.Tick.Label.YAlign = math.Pi/5, draw.XRight, draw.YCenter
	return p, nil
}

// overTime draws the days.
func overTime(r *quality.Report, m *quality.Measured) (*plot.Plot, error) {
	p := plot.New()
	p.X.Tick.Marker = plot.TimeTicks{Format: "2006-01-02"}
	p.Legend.Top, p.Legend.Left = true, true
	p.Add(plotter.NewGrid())
	both := merged(m)
	if len(both.Texts) > 0 {
		p.Y.Label.Text, p.Y.Min = "share of the entities, %", 0
		return p, frequentOverTime(p, both, days(r, m))
	}
	p.Y.Label.Text = "quantiles of " + m.Current.Output
	return p, quantilesOverTime(p, both, days(r, m))
}

// quantilesOverTime draws the median, and the areas between quantiles.
func quantilesOverTime(p *plot.Plot, both *quality.Distribution, all []day) error {
	at := func(q float64) (line plotter.XYs) {
		for _, d := range all {
			if y, ok := d.distribution.Quantile(q); ok {
				line = append(line, plotter.XY{X: float64(d.At.Unix()), Y: y})
			}
		}
		return line
	}
	if len(at(0.5)) == 0 {
		return nil
	}
	lowest := math.Inf(1)
	for _, xy := range at(0.05) {
		lowest = min(lowest, xy.Y)
	}
	if s := scaleOf(both); s.log && lowest > 0 {
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	}
	for _, area := range []struct {
		lo, hi float64
		color  color.Color
		name   string
	}{{0.05, 0.95, outerColor, "5 % to 95 %"}, {0.25, 0.75, innerColor, "25 % to 75 %"}} {
		outline, back := at(area.lo), at(area.hi)
		for i := len(back) - 1; i >= 0; i-- {
			outline = append(outline, back[i])
		}
		polygon, err := plotter.NewPolygon(outline)
		if err != nil {
			return err
		}
		polygon.Color, polygon.Width = area.color, 0
		p.Add(polygon)
		p.Legend.Add(area.name, polygon)
	}
	return addLine(p, at(0.5), currentColor, "median")
}

// frequentOverTime draws the shares of the most frequent texts.
func frequentOverTime(p *plot.Plot, both *quality.Distribution, all []day) error {
	for i, s := range both.Frequent(len(lineColors)) {
		var line plotter.XYs
		for _, d := range all {
			if d.Missing == "" && d.Found > 0 {
				y := 100 * share(d.distribution.Texts[s], d.distribution)
				line = append(line, plotter.XY{X: float64(d.At.Unix()), Y: y})
			}
		}
		if err := addLine(p, line, lineColors[i], Label(s)); err != nil {
			return err
		}
	}
	p.Y.Max *= headroom
	return nil
}

// addLine draws a line with a point per day.
func addLine(p *plot.Plot, xys plotter.XYs, c color.Color, name string) error {
	line, points, err := plotter.NewLinePoints(xys)
	if err != nil {
		return err
	}
	line.Color, line.Width, points.Color, points.Shape = c, vg.Points(2), c, draw.CircleGlyph{}
	p.Add(line, points)
	p.Legend.Add(name, line)
	return nil
}
