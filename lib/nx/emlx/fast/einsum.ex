defmodule EMLX.Fast.Einsum do
  @moduledoc """
  The block of `EMLX.Fast.einsum/2`. Its arguments are the operands. `:equation` has one letter for each axis and names
  the output, as in `"ab,bc->ac"`. `einsum/2` resolves ellipses, spaces and absent outputs before.
  """

  defstruct [:equation]

  @type t :: %__MODULE__{equation: String.t()}

  @most_operands 16

  @doc false
  # The maximum number of operands of a block. More operands are composed without a block.
  def most_operands, do: @most_operands

  @doc false
  # Returns the composed function for a number of operands.
  for count <- 1..@most_operands do
    operands = Macro.generate_arguments(count, __MODULE__)

    def function(unquote(count)),
      do: fn block, unquote_splicing(operands) -> contract(block, unquote(operands)) end
  end

  @doc false
  # Takes diagonals and sums within each operand, then products of pairs from the left.
  def contract(%{equation: equation}, operands) do
    [inputs, output] = String.split(equation, "->")
    output = String.to_charlist(output)
    terms = inputs |> String.split(",") |> Enum.map(&String.to_charlist/1)
    type = operands |> Enum.map(& &1.type) |> Enum.reduce(&Nx.Type.merge/2)
    operands = Enum.map(operands, &Nx.as_type(&1, computing(type)))

    {result, letters} =
      operands
      |> Enum.zip(terms)
      |> Enum.with_index(fn labelled, i -> reduce(labelled, output ++ Enum.concat(List.delete_at(terms, i))) end)
      |> product(output)

    result |> transpose(letters, output) |> Nx.as_type(type)
  end

  defp computing({kind, 16}) when kind in [:f, :bf], do: {:f, 32}
  defp computing(type), do: type

  # Reduces an operand until each letter occurs once and only letters that are used elsewhere are left.
  defp reduce({tensor, letters}, used) do
    case Enum.find(letters, fn letter -> Enum.count(letters, &(&1 == letter)) > 1 end) do
      nil ->
        case Enum.reject(letters, &(&1 in used)) do
          [] ->
            {tensor, letters}

          unused ->
            axes = for {letter, axis} <- Enum.with_index(letters), letter in unused, do: axis
            {tensor |> Nx.sum(axes: axes) |> Nx.as_type(tensor.type), letters -- unused}
        end

      letter ->
        [first, second | _] = for {^letter, axis} <- Enum.with_index(letters), do: axis
        kept = Enum.to_list(0..(length(letters) - 1)) -- [first, second]
        diagonal = tensor |> Nx.transpose(axes: kept ++ [first, second]) |> Nx.take_diagonal()
        reduce({diagonal, Enum.map(kept, &Enum.at(letters, &1)) ++ [letter]}, used)
    end
  end

  defp product([last], _output), do: last

  defp product([{a, in_a}, {b, in_b} | rest], output) do
    needed = output ++ Enum.flat_map(rest, &elem(&1, 1))
    {shared, free_a} = Enum.split_with(in_a, &(&1 in in_b))
    free_b = in_b -- shared
    {batch, summed} = Enum.split_with(shared, &(&1 in needed))

    a = transpose(a, in_a, batch ++ free_a ++ summed)
    b = transpose(b, in_b, batch ++ summed ++ free_b)
    batch_axes = axes(0, batch)
    summed_a = axes(length(batch) + length(free_a), summed)
    summed_b = axes(length(batch), summed)

    product([{Nx.dot(a, summed_a, batch_axes, b, summed_b, batch_axes), batch ++ free_a ++ free_b} | rest], output)
  end

  defp axes(first, letters), do: Enum.to_list(first..(first + length(letters) - 1)//1)

  defp transpose(tensor, letters, letters), do: tensor

  defp transpose(tensor, from, to),
    do: Nx.transpose(tensor, axes: Enum.map(to, fn letter -> Enum.find_index(from, &(&1 == letter)) end))

  # ---- equations ----

  @letters Enum.concat(?a..?z, ?A..?Z)

  @doc false
  # Returns the equation with one letter per axis, and for each operand the axes that are dropped since they are
  # broadcast.
  def parse!(equation, shapes) do
    context = {equation, shapes}
    {terms, output} = split!(equation, context)

    if length(terms) != length(shapes) do
      fail!(context, "the equation names #{length(terms)} operands, got #{length(shapes)}")
    end

    rests = Enum.zip_with(terms, shapes, &rest!(&1, &2, context))
    broadcast = Enum.max(rests)
    used = Enum.concat([output || [] | terms])
    {fresh, _} = Enum.split(@letters -- used, broadcast)
    if length(fresh) < broadcast, do: fail!(context, "there are more than 52 axes")

    output = output || implicit(terms)

    if broadcast > 0 and :ellipsis not in output do
      fail!(context, "the output has no ellipsis for the #{broadcast} axes that an ellipsis stands for in the operands")
    end

    inputs = Enum.zip_with(terms, rests, fn term, rest -> expand(term, Enum.take(fresh, -rest)) end)
    output = expand(output, fresh)
    {inputs, dropped} = sizes!(inputs, shapes, fresh, context)

    text = Enum.map_join(inputs, ",", &List.to_string/1)
    {"#{text}->#{output}", dropped}
  end

  @doc false
  # Returns letters that an equation does not use.
  def unused(equation, count) do
    case @letters -- String.to_charlist(equation) do
      free when length(free) >= count -> Enum.take(free, count)
      _ -> raise ArgumentError, "einsum #{inspect(equation)}: there are more than 52 axes"
    end
  end

  defp split!(equation, context) do
    case String.split(String.replace(equation, ~r/\s/, ""), "->") do
      [inputs] -> {terms!(inputs, context), nil}
      [inputs, output] -> {terms!(inputs, context), output!(output, inputs, context)}
      _ -> fail!(context, "there is more than one arrow")
    end
  end

  defp terms!(inputs, context), do: inputs |> String.split(",") |> Enum.map(&term!(&1, context))

  defp term!(text, context) do
    parts =
      case String.split(text, "...") do
        [letters] -> String.to_charlist(letters)
        [before, behind] -> String.to_charlist(before) ++ [:ellipsis] ++ String.to_charlist(behind)
        _ -> fail!(context, "#{inspect(text)} has more than one ellipsis")
      end

    case Enum.find(parts, &(&1 != :ellipsis and &1 not in @letters)) do
      nil -> parts
      other -> fail!(context, "#{inspect(<<other::utf8>>)} is not a letter for an axis")
    end
  end

  defp output!(output, inputs, context) do
    letters = term!(output, context)

    if twice = Enum.find(letters, fn letter -> Enum.count(letters, &(&1 == letter)) > 1 end) do
      fail!(context, "#{name(twice)} is in the output twice")
    end

    case Enum.find(letters, &(&1 not in Enum.concat(terms!(inputs, context)))) do
      nil -> letters
      missing -> fail!(context, "#{name(missing)} of the output is in no operand")
    end
  end

  defp name(:ellipsis), do: "the ellipsis"
  defp name(letter), do: <<letter::utf8>>

  # The number of axes that an ellipsis stands for.
  defp rest!(term, shape, context) do
    named = Enum.count(term, &(&1 != :ellipsis))
    rest = tuple_size(shape) - named

    if rest < 0 or (rest > 0 and :ellipsis not in term) do
      fail!(
        context,
        "#{inspect(text(term))} names #{named} axes, its operand #{inspect(shape)} has #{tuple_size(shape)}"
      )
    end

    rest
  end

  defp text(term), do: Enum.map_join(term, &if(&1 == :ellipsis, do: "...", else: <<&1::utf8>>))

  # The letters that occur once, in alphabetical order, after the ellipsis.
  defp implicit(terms) do
    all = Enum.concat(terms)
    once = for {letter, 1} <- Enum.frequencies(all), letter != :ellipsis, do: letter
    if(:ellipsis in all, do: [:ellipsis], else: []) ++ Enum.sort(once)
  end

  defp expand(term, letters), do: Enum.flat_map(term, &if(&1 == :ellipsis, do: letters, else: [&1]))

  # Axes of size 1 under an ellipsis are broadcast: they are dropped if another operand is longer.
  defp sizes!(inputs, shapes, fresh, context) do
    labelled = Enum.zip_with(inputs, shapes, fn letters, shape -> Enum.zip(letters, Tuple.to_list(shape)) end)

    sizes =
      for {axes, operand} <- Enum.with_index(labelled), {letter, size} <- axes, reduce: %{} do
        known ->
          case known do
            %{^letter => {^size, _}} ->
              known

            %{^letter => {1, _}} ->
              if letter in fresh,
                do: Map.put(known, letter, {size, operand}),
                else: differ!(context, letter, known, size, operand)

            %{^letter => _} ->
              if letter in fresh and size == 1, do: known, else: differ!(context, letter, known, size, operand)

            _ ->
              Map.put(known, letter, {size, operand})
          end
      end

    labelled
    |> Enum.map(fn axes ->
      dropped =
        for {{letter, 1}, axis} <- Enum.with_index(axes), letter in fresh, elem(sizes[letter], 0) != 1, do: axis

      letters = for {{letter, _}, axis} <- Enum.with_index(axes), axis not in dropped, do: letter
      {letters, dropped}
    end)
    |> Enum.unzip()
  end

  @spec differ!({String.t(), [tuple]}, char, map, integer, non_neg_integer) :: no_return
  defp differ!({_, shapes} = context, letter, known, size, operand) do
    {other_size, other} = known[letter]

    label =
      if String.contains?(elem(context, 0), <<letter::utf8>>), do: <<letter::utf8>>, else: "an axis of the ellipsis"

    fail!(
      context,
      "#{label} is #{other_size} in operand #{other} #{inspect(Enum.at(shapes, other))} " <>
        "and #{size} in operand #{operand} #{inspect(Enum.at(shapes, operand))}"
    )
  end

  defp fail!({equation, _shapes}, reason), do: raise(ArgumentError, "einsum #{inspect(equation)}: #{reason}")
end

defimpl EMLX.Block, for: EMLX.Fast.Einsum do
  alias EMLX.{Backend, Ops}

  def call(block, output, args, fun) do
    type = args |> Enum.map(& &1.type) |> Enum.reduce(&Nx.Type.merge/2)

    cond do
      elem(type, 1) < 8 or type == {:f, 8} or elem(type, 0) == :f8_e4m3fn ->
        EMLX.Block.decline(block, args, fun, "MLX has no products of #{Nx.Type.to_string(type)}")

      Enum.any?(args, &(Nx.size(&1) == 0)) ->
        EMLX.Block.decline(block, args, fun, "an operand is empty")

      true ->
        block.equation |> Ops.einsum(Enum.map(args, &Backend.operand(&1, type))) |> Backend.to_nx(output)
    end
  end
end
