defmodule EMLX.Bench.Report do
  @moduledoc """
  What the suite found: tables for the terminal, results.json, and a chart for each part.
  """

  alias EMLX.Bench.{Chart, JSON, Statistics, Table}

  @doc "What stands above the tables: the machine, the versions, and what is left out."
  def heading(results) do
    machine = results.machine
    versions = for {name, version} <- machine[:versions], version != nil, do: "#{name} #{version}"
    load = if results.load_before, do: ", load #{results.load_before}"
    quick = if results.quick, do: " Quick: a look, not a measurement."
    cores = machine[:cores]
    busy? = is_number(results.load_before) and is_number(cores) and results.load_before > cores / 2

    busy =
      if busy?,
        do: ["the machine is busy with other work: times are longer than they would be, and ratios less certain"],
        else: []

    where = if results.device == :gpu, do: machine[:gpu] || "GPU", else: machine[:processor]

    [
      "EMLX on the #{String.upcase(to_string(results.device))}, #{results.date}.#{quick}",
      "#{where}; #{machine[:cores]} cores, #{machine[:memory]}#{load}",
      Enum.join(versions, ", ")
      | busy ++ results.notes
    ]
    |> Enum.join("\n")
  end

  @doc """
  A part of results: its rows and failures, from its groups as they were measured:
  `{:ok, name, group, %{side => [figure]}}` or `{:error, name, message}`.
  """
  def part(name, groups) do
    rows =
      for {:ok, _, group, figures} <- groups,
          {label, here, against, opts} <- Enum.map(group.rows, &with_options/1),
          figures[here] != nil do
        of = fn side -> Statistics.summary(Keyword.get(opts, :figures, & &1).(figures[side])) end
        mine = of.(here)

        others =
          for side <- against, figures[side] != nil do
            theirs = of.(side)
            # On a busy machine the least times are nearer to the truth, since other work only adds.
            %{
              side: side,
              figure: theirs,
              ratio: Statistics.ratio(mine.median, theirs.median),
              least: Statistics.ratio(mine.least, theirs.least)
            }
          end

        %{label: label, here: here, figure: mine, against: others, unit: opts[:unit] || group.unit, point: group.point}
      end

    failed = for {:error, name, message} <- groups, do: {name, message}
    missing = for {:ok, name, group, _} <- groups, message <- group.missing, do: {name, message}
    notes = for {:ok, _, group, _} <- groups, note <- group.notes, do: note
    %{name: name, rows: rows, notes: notes, failures: failed ++ missing}
  end

  defp with_options({label, here, against}), do: {label, here, against, []}
  defp with_options(row), do: row

  @doc "A part as text."
  def text(part) do
    heading = ["#{part.name}", "here", "median", "against", "median", "ratio", "of least", ""]

    rows =
      for row <- part.rows,
          {other, i} <- Enum.with_index(if(row.against == [], do: [nil], else: row.against)) do
        first = if i == 0, do: [row.label, row.here, Statistics.text(row.figure.median, row.unit)], else: ["", "", ""]
        first ++ against(other, row.unit)
      end

    notes = for note <- part.notes, do: "\n" <> note
    failures = for {name, message} <- part.failures, do: "\nfailed: #{name}: #{message}"
    table = if rows == [], do: "#{part.name}: nothing to show", else: Table.text(heading, rows, left: [1, 3, 7])
    table <> Enum.join(notes ++ failures)
  end

  defp against(nil, _unit), do: ["", "", "", "", ""]

  defp against(other, unit) do
    verdict = if unit != :bytes, do: Statistics.verdict(other.ratio), else: ""
    [ratio, least] = for ratio <- [other.ratio, other.least], do: if(ratio, do: Statistics.digits(ratio), else: "")
    [other.side, Statistics.text(other.figure.median, unit), ratio, least, verdict]
  end

  @doc "Writes results.json and the charts into a folder; gives the files' names."
  def write(results, folder) do
    File.mkdir_p!(folder)
    json = Path.join(folder, "results.json")
    File.write!(json, json(results) <> "\n")

    charts =
      for part <- results.parts, svg = chart(part, results) do
        path = Path.join(folder, "#{part.name}.svg")
        File.write!(path, svg)
        path
      end

    [json | charts]
  end

  @doc "The results as JSON. Times are in microseconds, memory in bytes; a ratio is ours to theirs."
  def json(results) do
    parts =
      for part <- results.parts do
        rows =
          for row <- part.rows do
            against =
              for other <- row.against,
                  do: [side: other.side] ++ figure(other.figure) ++ [ratio: other.ratio, ratio_of_least: other.least]

            [case: row.label, unit: unit(row.unit), here: [side: row.here] ++ figure(row.figure), against: against]
          end

        failures = for {name, message} <- part.failures, do: [case: name, message: message]
        [name: part.name, rows: rows, notes: part.notes, failures: failures]
      end

    JSON.encode(
      date: results.date,
      device: results.device,
      quick: results.quick,
      machine: results.machine,
      load: [before: results.load_before, after: results[:load_after]],
      notes: results.notes,
      parts: parts
    )
  end

  defp figure(figure) do
    {low, high} = figure.quartiles
    [median: figure.median, least: figure.least, quartiles: [low, high], runs: figure.runs]
  end

  defp unit(:time), do: "microseconds"
  defp unit(:token), do: "microseconds a token"
  defp unit(:bytes), do: "bytes"

  @doc "A part's chart as SVG, or nil where there is nothing to draw."
  def chart(%{rows: rows} = part, results) do
    title = "EMLX, #{part.name}, #{String.upcase(to_string(results.device))}, #{String.slice(results.date, 0, 10)}"

    case Enum.split_with(rows, & &1.point) do
      {[], rows} -> ratios(title, rows)
      {points, _} -> Chart.growth(title, panels(points))
    end
  end

  defp ratios(title, rows) do
    drawn =
      for row <- rows,
          ratios = for(other <- row.against, ratio = other.ratio, ratio > 0, do: {other.side, ratio}),
          ratios != [],
          do: {chart_label(row), Statistics.text(row.figure.median, row.unit), ratios}

    what = if Enum.any?(rows, &(&1.unit == :bytes)), do: "memory", else: "time"
    if drawn != [], do: Chart.ratios(title, "#{what} here / #{what} there; left of 1 is less here", drawn)
  end

  # Several sides here may stand for one case.
  defp chart_label(%{here: here, label: label}) when here in ["EMLX", "kernel", "saved program"], do: label
  defp chart_label(%{here: here, label: label}), do: "#{label}, #{here}"

  defp panels(points) do
    # Time on the left, memory on the right, a line for each axis.
    keys = points |> Enum.map(&{elem(&1.point, 0), &1.unit}) |> Enum.uniq()
    axes = keys |> Enum.map(&elem(&1, 0)) |> Enum.uniq()

    for axis <- axes, unit <- [:time, :bytes], {axis, unit} in keys do
      rows = Enum.filter(points, &(elem(&1.point, 0) == axis and &1.unit == unit))

      figures =
        for row <- rows, {side, figure} <- [{row.here, row.figure} | Enum.map(row.against, &{&1.side, &1.figure})] do
          {side, {elem(row.point, 1), figure.median}}
        end

      series =
        for {side, _} <- Enum.uniq_by(figures, &elem(&1, 0)), do: {side, for({^side, point} <- figures, do: point)}

      {to_string(axis), unit, series}
    end
  end
end
