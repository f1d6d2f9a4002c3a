defmodule EMLX.Bench.Chart do
  @moduledoc """
  The suite's charts, as SVG that reads on light and on dark ground: ratios as dots on a logarithmic axis, and figures
  that grow as lines on two.
  """

  alias EMLX.Bench.Statistics

  @width 860
  # Of a character on average, and a little more.
  @character 6.9
  @font 12
  @row 20

  @style """
  <style>
  .ground { fill: #ffffff } .text { fill: #1f2328 } .faint { fill: #59636e } .grid { stroke: #d1d9e0 } .one { stroke: #59636e }
  .c0 { fill: #0969da; stroke: #0969da } .c1 { fill: #bc4c00; stroke: #bc4c00 } .c2 { fill: #1a7f37; stroke: #1a7f37 }
  .c3 { fill: #8250df; stroke: #8250df } .c4 { fill: #bf3989; stroke: #bf3989 } .line { fill: none; stroke-width: 2 }
  text { font-family: system-ui, sans-serif; font-size: #{@font}px; stroke: none } .title { font-size: 15px; font-weight: 600 }
  @media (prefers-color-scheme: dark) {
  .ground { fill: #0d1117 } .text { fill: #f0f6fc } .faint { fill: #9198a1 } .grid { stroke: #3d444d } .one { stroke: #9198a1 }
  .c0 { fill: #4493f8; stroke: #4493f8 } .c1 { fill: #f0883e; stroke: #f0883e } .c2 { fill: #3fb950; stroke: #3fb950 }
  .c3 { fill: #ab7df8; stroke: #ab7df8 } .c4 { fill: #db61a2; stroke: #db61a2 } .line { fill: none }
  }
  </style>
  """

  @doc """
  Ratios: `rows` are `{label, text, [{name, ratio}]}`, where `text` stands at the right. A dot for each ratio, left of
  the line at 1 where what is measured here is the better one. `axis` says what the ratios are of.
  """
  def ratios(title, axis, rows) do
    names = for({_, _, ratios} <- rows, {name, _} <- ratios, do: name) |> Enum.uniq()
    values = for {_, _, ratios} <- rows, {_, ratio} <- ratios, do: ratio
    widest = rows |> Enum.map(fn {label, _, _} -> String.length(label) end) |> Enum.max()
    left = max(widest * @character + 30, 120)
    {right, top} = {left + 440, 70}
    bottom = top + @row * length(rows)
    {low, high} = powers([1 | values], 2)
    x = fn value -> place(value, low, high, left, right) end

    ticks =
      for power <- ticks(low, high) do
        value = :math.pow(2, power)
        at = x.(value)

        [
          line(at, top - 6, at, bottom, if(power == 0, do: "one", else: "grid")),
          text(at, bottom + 18, Statistics.digits(value), "faint", "middle")
        ]
      end

    dots =
      for {{label, here, ratios}, i} <- Enum.with_index(rows) do
        y = top + @row * i + @row / 2

        [
          text(left - 10, y + 4, label, "text", "end"),
          text(right + 12, y + 4, here, "faint", "start"),
          for {name, ratio} <- ratios do
            dot(x.(ratio), y, index(names, name), "#{label}: #{Statistics.digits(ratio)} of #{name}")
          end
        ]
      end

    [ticks, dots, legend(names, 20, 46), text((left + right) / 2, bottom + 40, axis, "text", "middle")]
    |> document(title, right + 90, bottom + 56)
  end

  @doc """
  Growth: `panels` are `{x_label, unit, [{name, [{x, figure}]}]}`, drawn beside one another, two in a row. Both axes are
  logarithmic; the unit is `:time` or `:bytes`.
  """
  def growth(title, panels) do
    names = for({_, _, series} <- panels, {name, _} <- series, do: name) |> Enum.uniq()
    {columns, height} = {2, 300}
    width = div(@width, columns)

    drawn =
      for {panel, i} <- Enum.with_index(panels) do
        panel(panel, names, {rem(i, columns) * width, 60 + div(i, columns) * height, width, height})
      end

    document([drawn, legend(names, 20, 46)], title, @width, 60 + height * ceil(length(panels) / columns))
  end

  defp panel({label, unit, series}, names, {x0, y0, width, height}) do
    points = for {_, points} <- series, point <- points, do: point
    {xs, ys} = Enum.unzip(points)
    {left, right, top, bottom} = {x0 + 78, x0 + width - 24, y0 + 30, y0 + height - 56}
    {x_low, x_high} = spread(Enum.map(xs, &:math.log2/1))
    {y_low, y_high} = powers(ys, 2)
    x = fn value -> place(value, x_low, x_high, left, right) end
    y = fn value -> place(value, y_low, y_high, bottom, top) end

    vertical =
      for value <- Enum.uniq(Enum.sort(xs)) do
        [line(x.(value), top, x.(value), bottom, "grid"), text(x.(value), bottom + 18, "#{value}", "faint", "middle")]
      end

    horizontal =
      for value <- marks(unit, y_low, y_high) do
        [
          line(left, y.(value), right, y.(value), "grid"),
          text(left - 8, y.(value) + 4, Statistics.text(value, unit), "faint", "end")
        ]
      end

    lines =
      for {name, points} <- series do
        i = index(names, name)
        path = Enum.map_join(points, " ", fn {a, b} -> "#{number(x.(a))},#{number(y.(b))}" end)

        [
          ~s(<polyline class="c#{i} line" points="#{path}"/>\n),
          for({a, b} <- points, do: dot(x.(a), y.(b), i, "#{name}, #{a} #{label}: #{Statistics.text(b, unit)}"))
        ]
      end

    what = if unit == :bytes, do: "memory", else: "time"

    [
      vertical,
      horizontal,
      lines,
      text((left + right) / 2, bottom + 38, label, "text", "middle"),
      text(left, top - 8, what, "text", "middle")
    ]
  end

  # ---- axes ----

  # The powers of a base between which all values are.
  defp powers(values, base) do
    logs = for value <- values, value > 0, do: :math.log(value) / :math.log(base)
    {low, high} = Enum.min_max(logs)
    spread([floor(low + 1.0e-9), ceil(high - 1.0e-9)])
  end

  defp spread(logs) do
    {low, high} = Enum.min_max(logs)
    if low == high, do: {low - 1, high + 1}, else: {low, high}
  end

  # Round numbers between two powers of 2: for bytes those powers, for times 1, 2 and 5 or, where that is too many,
  # powers of 10.
  defp marks(:bytes, low, high), do: for(power <- ticks(low, high), do: :math.pow(2, power))

  defp marks(:time, low, high) do
    round = fn factors ->
      for power <- floor(low * :math.log10(2))..ceil(high * :math.log10(2)),
          factor <- factors,
          value = factor * :math.pow(10, power),
          :math.log2(value) >= low and :math.log2(value) <= high,
          do: value
    end

    if length(round.([1, 2, 5])) <= 9, do: round.([1, 2, 5]), else: round.([1])
  end

  # About ten of the whole powers at most.
  defp ticks(low, high) do
    step = max(1, ceil((high - low) / 9))
    for power <- ceil(low)..floor(high), rem(power, step) == 0, do: power
  end

  defp place(value, low, high, from, to), do: from + (to - from) * (:math.log2(value) - low) / (high - low)

  # ---- pieces ----

  defp legend(names, x, y) do
    {pieces, _} =
      Enum.map_reduce(names, x, fn name, x ->
        {[dot(x + 5, y - 4, index(names, name), name), text(x + 16, y, name, "text", "start")],
         x + 40 + String.length(name) * @character}
      end)

    pieces
  end

  defp index(names, name), do: rem(Enum.find_index(names, &(&1 == name)), 5)

  defp dot(x, y, i, title) do
    ~s(<circle class="c#{i}" cx="#{number(x)}" cy="#{number(y)}" r="4.5"><title>#{escape(title)}</title></circle>\n)
  end

  defp line(x1, y1, x2, y2, class) do
    [x1, y1, x2, y2] = Enum.map([x1, y1, x2, y2], &number/1)
    ~s(<line class="#{class}" x1="#{x1}" y1="#{y1}" x2="#{x2}" y2="#{y2}"/>\n)
  end

  defp text(x, y, text, class, anchor),
    do: ~s(<text class="#{class}" x="#{number(x)}" y="#{number(y)}" text-anchor="#{anchor}">#{escape(text)}</text>\n)

  defp document(content, title, width, height) do
    IO.iodata_to_binary([
      ~s(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 #{number(width)} #{number(height)}" width="#{number(width)}" role="img">\n),
      "<title>#{escape(title)}</title>\n",
      @style,
      ~s(<rect class="ground" width="#{number(width)}" height="#{number(height)}"/>\n),
      ~s(<text class="text title" x="20" y="26">#{escape(title)}</text>\n),
      content,
      "</svg>\n"
    ])
  end

  defp number(value), do: :erlang.float_to_binary(value * 1.0, [:compact, decimals: 2])

  defp escape(text),
    do: text |> String.replace("&", "&amp;") |> String.replace("<", "&lt;") |> String.replace(">", "&gt;")
end
