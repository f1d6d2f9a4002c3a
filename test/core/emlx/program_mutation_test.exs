defmodule EMLX.ProgramMutationTest do
  # Damaged and forged files of programs end in an error or a result, and never in a crash of the VM. Not async: the
  # tests lower the memory limit. ExUnit's seed selects the files: `mix test --seed N` repeats a failure.
  use ExUnit.Case, async: false

  alias EMLX.{Array, Error, Memory, Program, Programs}

  @moduletag :tmp_dir
  @moduletag timeout: 600_000

  # The numbers of files of each kind, in ordinary tests and in those tagged :slow; EMLX_LONG=1 makes the latter ten
  # times as many.
  @slow_times if System.get_env("EMLX_LONG"), do: 100, else: 10
  @bytes 150
  @forged 300
  @tensors 50

  # The tokens that forged files contain.
  @numbers ~w(-9223372036854775808 -2147483649 -2147483648 -3 -1 0 1 2 3 7 255 65536 1048577 2147483647 2147483648
              4294967295 9007199254740993 18446744073709551615 18446744073709551616 0.5 -0.0 1e-320 1e308 1e999)
  @words ~w(null true false [] {} "" "x" "f32" "s64" "bool" "bf16" "c64" "u8" "first" "abs" "add" "nan" "infinity" "op"
            "if" "while" "inputs" "axes" [0] [0,0,0] [null] {"then":0,"else":0} {"condition":0,"body":1})

  setup %{tmp_dir: dir} do
    :rand.seed(:exsss, ExUnit.configuration()[:seed])
    # A forged program may need any amount of memory; this is the limit.
    limit = Memory.set_limit(256 * 1_048_576)
    on_exit(fn -> Memory.set_limit(limit) end)

    bases =
      for {name, {program, inputs}} <- Programs.all() do
        path = Path.join(dir, "#{name}.emlx")
        :ok = Program.save(program, path)
        [header, body] = path |> File.read!() |> String.split("\n", parts: 2)
        %{path: path, header: header, body: body, inputs: inputs, outputs: bits(Program.run(program, inputs))}
      end

    %{bases: bases}
  end

  for {times, slow?} <- [{1, false}, {@slow_times, true}] do
    if slow?, do: @tag(:slow)

    test "load/2 refuses #{times * @bytes} files with changed bytes", %{bases: bases} do
      for _ <- 1..(unquote(times) * @bytes) do
        base = Enum.random(bases)
        original = base.header <> "\n" <> base.body
        text = mutate(original, base.body)
        File.write!(base.path, text)
        if text == original, do: assert_right(base), else: assert_refused(base, text)
      end
    end

    if slow?, do: @tag(:slow)

    test "load/2 refuses or runs #{times * @forged} forged files with a right digest", %{bases: bases} do
      counts =
        for _ <- 1..(unquote(times) * @forged), reduce: %{} do
          counts ->
            base = Enum.random(bases)
            body = Enum.reduce(1..Enum.random([1, 1, 1, 2, 4]), base.body, fn _, body -> forge(body, base.body) end)
            Programs.forge(base.path, body)
            Map.update(counts, outcome(base, body), 1, &(&1 + 1))
        end

      # Most files are either refused by load/2 or run; few load and fail in the run.
      assert %{refused: _, answered: _} = counts
    end

    if slow?, do: @tag(:slow)

    test "load/2 refuses #{times * @tensors} files of constants with changed bytes", %{bases: bases} do
      base = Enum.find(bases, &(&1.path =~ "attention"))
      path = String.replace(base.path, ".emlx", ".safetensors")
      original = File.read!(path)

      for _ <- 1..(unquote(times) * @tensors) do
        text = mutate(original, original)
        File.write!(path, text)
        # A header with the same meaning in another form is accepted.
        if text == original, do: assert_right(base), else: assert(outcome(base, text) in [:refused, :same])
      end
    end
  end

  defp assert_right(base), do: assert(base.path |> Program.load() |> Program.run(base.inputs) |> bits() == base.outputs)

  defp assert_refused(base, text) do
    assert %Error{kind: :file} = catch_error(Program.load(base.path)), shown(text)
  end

  # Loads and runs a file, and returns the outcome. A forged loop may run forever; its process is killed, as a user
  # would do.
  defp outcome(base, text) do
    task =
      Task.async(fn ->
        try do
          program = Program.load(base.path)

          try do
            if bits(Program.run(program, given(program, base.inputs))) == base.outputs, do: :same, else: :answered
          rescue
            _error in Error -> :raised
          end
        rescue
          error in Error ->
            assert error.kind == :file, shown(text)
            :refused
        end
      end)

    case Task.yield(task, 2_000) || Task.shutdown(task, :brutal_kill) do
      {:ok, outcome} -> outcome
      nil -> :endless
    end
  end

  # Inputs that fit the forged program, so that more programs run.
  defp given(%{inputs: inputs}, _) when is_list(inputs) do
    for {_name, shape, dtype} <- inputs, do: EMLX.Ops.ones(shape, dtype)
  end

  defp given(_program, inputs), do: inputs

  defp bits(arrays), do: Enum.map(arrays, &{Array.shape(&1), Array.dtype(&1), Array.to_binary(&1)})

  defp shown(text),
    do: "with seed #{ExUnit.configuration()[:seed]}: #{inspect(text, limit: :infinity, printable_limit: :infinity)}"

  # ---- damage ----

  defp mutate("", _other), do: "{"

  defp mutate(text, other) do
    size = byte_size(text)
    at = :rand.uniform(size) - 1

    case :rand.uniform(6) do
      1 ->
        binary_part(text, 0, at)

      2 ->
        binary_part(text, at, size - at)

      3 ->
        splice(text, at, 0, :rand.bytes(:rand.uniform(8)))

      4 ->
        splice(text, at, min(:rand.uniform(16), size - at), "")

      5 ->
        from = :rand.uniform(byte_size(other)) - 1
        splice(text, at, 0, binary_part(other, from, min(:rand.uniform(64), byte_size(other) - from)))

      6 ->
        Enum.reduce(1..:rand.uniform(4), text, fn _, text ->
          at = :rand.uniform(byte_size(text)) - 1
          splice(text, at, 1, <<Bitwise.bxor(:binary.at(text, at), Bitwise.bsl(1, :rand.uniform(8) - 1))>>)
        end)
    end
  end

  defp splice(text, at, length, with) do
    binary_part(text, 0, at) <> with <> binary_part(text, at + length, byte_size(text) - at - length)
  end

  # ---- forgery ----

  # Mostly replaces a token by another one, so that the file stays JSON.
  defp forge(body, original) do
    case :rand.uniform(10) do
      1 ->
        mutate(body, original)

      2 ->
        swap(body)

      _ ->
        tokens = Regex.scan(~r/-?\d+(?:\.\d+)?(?:e-?\d+)?|"[^"]*"|true|false|null/, body, return: :index)

        case tokens do
          [] ->
            body <> Enum.random(@words)

          tokens ->
            [{at, length}] = Enum.random(tokens)
            splice(body, at, length, replacement(binary_part(body, at, length), body))
        end
    end
  end

  defp replacement(token, body) do
    case :rand.uniform(4) do
      1 ->
        Enum.random(@numbers ++ @words)

      2 ->
        Enum.random(@numbers)

      3 ->
        # A token of the same kind from the same file: another operation, another value.
        kind = if String.starts_with?(token, "\""), do: ~r/"[^"]*"/, else: ~r/-?\d+(?:\.\d+)?/
        [other] = Enum.random(Regex.scan(kind, body) ++ [[token]])
        other

      4 ->
        case Integer.parse(token) do
          {n, ""} -> Integer.to_string(n + Enum.random([-2, -1, 1, 2]))
          _ -> Enum.random(@words)
        end
    end
  end

  # Swaps two instructions.
  defp swap(body) do
    case Regex.scan(~r/\{"op":"\w+","inputs":[^}]*\}/, body, return: :index) do
      [_, _ | _] = found ->
        [[{a, a_length}], [{b, b_length}]] = Enum.sort(Enum.take_random(found, 2))
        {first, second} = {binary_part(body, a, a_length), binary_part(body, b, b_length)}
        body |> splice(b, b_length, first) |> splice(a, a_length, second)

      _ ->
        body
    end
  end
end
