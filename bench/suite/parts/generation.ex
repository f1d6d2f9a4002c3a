defmodule EMLX.Bench.Parts.Generation do
  @moduledoc """
  Greedy generation of text by Bumblebee compiled with EMLX: tokens a second, and the time to the first token, against
  mlx-lm with the same weights. Bumblebee's model is rewritten by `EMLXBumblebee`, as it is compiled by default on the
  CPU, with merged operations, as by default on the GPU, and running ahead too; and it is as it is. On the GPU the
  shapes are those of Qwen3-0.6B and Llama-3.2-1B, on the CPU small ones of the same families unless `--full` asks for
  those too.

  Before anything is timed, each side's tokens are laid before mlx-lm's model in f32, with the same weights: no token
  may be clearly below the one that it takes. Sides that round, or add in another order, take another token where two
  are nearly as good, and their texts part there; how many first tokens are mlx-lm's is told under the table.

  Sampling is compared with greedy generation of the same model: tokens drawn by top-k and top-p from a seed for each
  row. Its first tokens are laid beside those of Nx's evaluator, which runs one operation after another.
  """

  use EMLX.Bench.Part,
    about: "tokens a second of Bumblebee's generation against mlx-lm, dense and in 4 bits",
    needs: :nx,
    peers: [:mlx_lm, :bumblebee]

  alias EMLX.Bench.{Checkpoint, Peer, Statistics}

  @theirs "mlx-lm"
  @plain "Bumblebee as it is"

  @ways [
    {"Bumblebee rewritten", [rewritten: true]},
    {"merge", [rewritten: true, merge: true]},
    {"merge + run_ahead", [rewritten: true, merge: true, run_ahead: 8]},
    {@plain, [rewritten: false]}
  ]

  # How far below the best in f32 a side's token may be, in standard deviations of the logits. A model that computes
  # something else is some 4 below; rounding to bf16 moves a logit by 0.01 to 0.02.
  @limits %{f32: 0.005, bf16: 0.25}

  @impl true
  def groups(%{peers: %{bumblebee: _}} = context) do
    greedy =
      for model <- models(context), {type, bits} <- types(context.device) do
        {"#{model}, #{type}, #{bits} bits", fn -> group(context, model, type, bits) end}
      end

    sampled =
      for {model, type} <- sampled(context), rows <- if(context.quick?, do: [1], else: [1, 8]) do
        {"#{model}, #{type}, sampled, #{counted(rows)}", fn -> sampled_group(context, model, type, rows) end}
      end

    greedy ++ sampled
  end

  # All that is measured here is Bumblebee's; what is missing of it stands above the tables.
  def groups(_context), do: []

  defp models(%{quick?: true} = context), do: Enum.take(models(%{context | quick?: false}), 1)
  defp models(%{device: :cpu, full?: false}), do: [:small_qwen3, :small_llama]
  defp models(_context), do: [:qwen3, :llama]

  # Of a small and of a large vocabulary.
  defp sampled(%{device: :gpu}), do: [qwen3: :bf16]
  defp sampled(%{quick?: true}), do: [small_qwen3: :f32]
  defp sampled(_context), do: [small_qwen3: :f32, wide_qwen3: :f32]

  defp types(:gpu), do: [f32: 16, bf16: 16, bf16: 4]
  defp types(:cpu), do: [f32: 16, bf16: 16, f32: 4]

  # {tokens of the prompt, tokens that are generated}
  defp lengths(%{quick?: true}), do: {16, 16}
  defp lengths(%{device: :cpu}), do: {32, 128}
  defp lengths(%{device: :gpu}), do: {128, 256}

  defp group(context, model, type, bits) do
    model = Checkpoint.text(context.temporary, model, context.device)
    {prompt, tokens} = lengths(context)
    inputs = Checkpoint.inputs(context.temporary, 1, prompt, model.vocabulary)
    options = [folder: model.folder, inputs: inputs, bits: bits]
    title = "#{model.title}, #{type}#{if bits != 16, do: ", #{bits} bits"}"

    sides = defined(context, options ++ [type: type, tokens: tokens])
    {wrong, notes} = compared(sides, context.peers[:mlx_lm], options ++ [type: type], title)
    {refused, kept} = Enum.split_with(sides, &List.keymember?(wrong, &1.name, 0))
    drop(refused)

    %Group{
      sides: for(%{number: _} = side <- kept, do: {side.name, fn -> times(side) end}),
      rows: rows(title, tokens),
      notes: notes,
      missing: for(%{error: message} <- sides, do: message) ++ for({_name, message} <- wrong, do: message),
      tidy: fn -> drop(kept) end
    }
  end

  @drawn [strategy: :sampled, top_k: 50, top_p: 0.9]
  # Tokens that the evaluator draws for comparison.
  @compared 8

  defp sampled_group(context, model, type, rows) do
    model = Checkpoint.text(context.temporary, model, context.device)
    {prompt, tokens} = lengths(context)
    inputs = Checkpoint.inputs(context.temporary, rows, prompt, model.vocabulary)
    options = [folder: model.folder, inputs: inputs, bits: 16, type: type, rewritten: true, tokens: tokens]
    title = "#{model.title}, #{type}, #{counted(rows)}"
    peer = context.peers[:bumblebee]

    define = fn name, own ->
      number = Peer.define(peer, :generate, Keyword.merge(options, own))
      %{name: name, peer: peer, number: number, ids: ids(peer, number)}
    end

    sides = [define.("greedy", []), define.("sampled", @drawn)]
    [drawn, same] = for own <- [[], [compiler: :evaluator]], do: define.("drawn", @drawn ++ own ++ [tokens: @compared])
    drop([drawn, same])
    count = common(drawn.ids, same.ids)

    %Group{
      sides: for(side <- sides, do: {side.name, fn -> times(side) end}),
      rows: [{title, "sampled", ["greedy"], [unit: :token, figures: &each_token(&1, tokens)]}],
      notes: ["#{title}: the first #{count} of #{length(same.ids)} tokens that are drawn are the evaluator's"],
      tidy: fn -> drop(sides) end
    }
  end

  defp counted(1), do: "1 row"
  defp counted(rows), do: "#{rows} rows"

  # Only the last way runs ahead, and that starts after the first token.
  defp rows(title, tokens) do
    [{first, _}, {merged, _}, {ahead, _}, _] = @ways
    each = [unit: :token, figures: &each_token(&1, tokens)]
    to_first = [unit: :time, figures: fn runs -> for {_, first} <- runs, do: first end]

    for(
      {name, others} <- [{first, [@theirs, @plain]}, {merged, [@theirs, first]}, {ahead, [@theirs, first]}],
      do: {title, name, others, each}
    ) ++
      for {name, others} <- [{first, [@theirs, @plain]}, {merged, [@theirs, first]}],
          do: {title <> ", first token", name, others, to_first}
  end

  defp times(side) do
    [all, first] = Peer.times(side.peer, side.number)
    {all, first}
  end

  # From all that it takes and that to the first token. By rank, the shortest with the shortest: other work on the
  # machine that comes upon one of a pair would make the difference anything.
  defp each_token(runs, tokens) do
    {all, first} = Enum.unzip(runs)
    Enum.zip_with(Enum.sort(all), Enum.sort(first), &((&1 - &2) / (tokens - 1)))
  end

  # ---- sides ----

  # `%{name:, peer:, number:, ids:}` of each, or `%{name:, error:}`.
  defp defined(context, options) do
    theirs = if context.peers[:mlx_lm], do: [{@theirs, :mlx_lm, []}], else: []

    for {name, peer, own} <- for({name, own} <- @ways, do: {name, :bumblebee, own}) ++ theirs do
      peer = context.peers[peer]

      try do
        number = Peer.define(peer, :generate, options ++ own)
        %{name: name, peer: peer, number: number, ids: ids(peer, number)}
      rescue
        # The others are measured all the same.
        error -> %{name: name, error: "#{name}: #{Exception.message(error)}"}
      end
    end
  end

  defp ids(peer, number), do: peer |> Peer.sample(number) |> Enum.map(&trunc/1)

  defp drop(sides), do: for(%{peer: peer, number: number} <- sides, do: Peer.drop(peer, number))

  # ---- whether they compute the same ----

  # `{[{name, message}] of those that compute something else, [note]}`.
  defp compared(sides, nil, _options, title) do
    case for(%{ids: ids} <- sides, do: ids) do
      [] ->
        {[], []}

      [first | _] = texts ->
        same = texts |> Enum.map(&common(&1, first)) |> Enum.min()
        tokens = "the first #{same} of #{length(first)} tokens are the same in #{length(texts)} ways"
        {[], ["#{title}: #{tokens}, and mlx-lm is not there"]}
    end
  end

  defp compared(sides, peer, options, title) do
    limit = @limits[options[:type]]
    theirs = Enum.find_value(sides, [], &(&1.name == @theirs and &1[:ids]))

    # Sides with the same tokens are looked at once.
    texts =
      for {ids, names} <- Enum.group_by(for(%{ids: _} = side <- sides, do: side), & &1.ids, & &1.name) do
        number = Peer.define(peer, :below, options ++ [ids: Enum.join(ids, ",")])
        below = Peer.sample(peer, number)
        Peer.drop(peer, number)
        text = %{names: names, same: common(ids, theirs), taken: Enum.count(below, &(&1 == 0)), worst: Enum.max(below)}
        Map.merge(text, %{ids: ids, place: Enum.find_index(below, &(&1 == text.worst)) + 1})
      end

    wrong =
      for text <- texts, text.worst > limit, name <- text.names do
        {name, "#{name} computes something else: token #{text.place} is #{below(text)} below the best in f32"}
      end

    {wrong, for(text <- texts, theirs != [], ours(text) != [], do: note(title, text, texts))}
  end

  defp note(title, %{ids: ids} = text, texts) do
    count = length(ids)
    who = if length(ours(text)) == length(@ways), do: title, else: "#{title}, #{Enum.join(ours(text), ", ")}"
    own = Enum.find(texts, &(@theirs in &1.names))

    if text.same == count do
      "#{who}: all #{count} tokens are mlx-lm's"
    else
      "#{who}: the first #{text.same} of #{count} tokens are mlx-lm's; f32 takes #{text.taken}, and the worst is #{below(text)} below " <>
        "its best (of mlx-lm's #{own.taken}, #{below(own)})"
    end
  end

  defp ours(text), do: text.names -- [@theirs]

  defp below(text), do: "#{Statistics.digits(text.worst)} σ"

  defp common(ids, others), do: ids |> Enum.zip(others) |> Enum.take_while(fn {a, b} -> a == b end) |> length()
end
