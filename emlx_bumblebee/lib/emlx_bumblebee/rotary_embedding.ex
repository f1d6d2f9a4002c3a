defmodule EMLXBumblebee.RotaryEmbedding do
  @moduledoc false
  # Rotary position embedding as one block for query and key, Bumblebee.Block.RotaryEmbedding. The layers of rewritten
  # models call it, and the block's implementation takes the kernel's frequencies from here.

  alias EMLXBumblebee.Call

  @doc "Runs the block with the arguments of Bumblebee's layer function. Of the attention mask only the length is used."
  def run(query, key, position_ids, attention_mask, opts, function) do
    masked? = not match?(%Axon.None{}, attention_mask)

    block = %Bumblebee.Block.RotaryEmbedding{
      size: opts[:size],
      length: Nx.axis_size(if(masked?, do: attention_mask, else: position_ids), 1),
      max_positions: opts[:max_positions],
      base: opts[:base],
      scaling_strategy: opts[:scaling_strategy]
    }

    opts = Keyword.take(opts, [:size, :max_positions, :base, :scaling_strategy])

    Call.block(block, [query, key, position_ids], {query, key}, fn block, [query, key, position_ids] ->
      function.(query, key, position_ids, Nx.broadcast(0, {1, block.length}), opts)
    end)
  end

  @doc "Returns the reason why the frequencies of a block are unknown, or nil."
  def refusal(%{scaling_strategy: strategy}) do
    case strategy do
      nil -> nil
      %{type: type} when type in [:linear, :dynamic, :longrope, :llama3] -> nil
      other -> "the scaling strategy #{inspect(other)} is not known"
    end
  end

  @doc """
  Returns `{frequencies, factor}`, computed and rounded to f32 as in Bumblebee. An angle is a position divided by a
  frequency; cosines and sines are multiplied by the factor.
  """
  def frequencies(%{size: size, base: base, scaling_strategy: strategy, length: length, max_positions: trained} = block) do
    case strategy do
      %{type: :linear, factor: factor} ->
        {Enum.map(powers(base, size), &f32(&1 * factor)), 1.0}

      %{type: :dynamic, factor: factor} when length > trained ->
        {powers(f32(:math.pow(f32(base * (factor * length / trained - (factor - 1))), size / (size - 2))), size), 1.0}

      %{type: :longrope} ->
        longrope(block, strategy)

      %{type: :llama3} ->
        {Enum.map(powers(base, size), &llama3(&1, strategy)), 1.0}

      _ ->
        {powers(base, size), 1.0}
    end
  end

  defp powers(base, size),
    do: for(index <- 0..(div(size, 2) - 1)//1, do: f32(:math.pow(base, f32(2 * index / size))))

  defp longrope(%{length: length} = block, %{original_max_positions: original} = strategy) do
    factors = if length > original, do: strategy.long_factor, else: strategy.short_factor
    scale = block.max_positions / original
    factor = if scale <= 1.0, do: 1.0, else: f32(:math.sqrt(f32(f32(:math.log(scale) / :math.log(original)) + 1)))
    {Enum.zip_with(powers(block.base, block.size), factors, &f32(&1 * f32(&2))), factor}
  end

  # Bumblebee scales the reciprocals.
  defp llama3(frequency, strategy) do
    original = strategy.original_max_positions
    {low, high} = {strategy.low_frequency_factor, strategy.high_frequency_factor}
    inverse = f32(1.0 / frequency)
    wavelength = f32(2 * f32(:math.pi()) / inverse)

    scaled =
      cond do
        wavelength < original / high ->
          inverse

        wavelength > original / low ->
          inverse / strategy.factor

        true ->
          smooth = (original / wavelength - low) / (high - low)
          (1 - smooth) * inverse / strategy.factor + smooth * inverse
      end

    f32(1.0 / scaled)
  end

  # Rounds a number to f32.
  defp f32(number) do
    <<rounded::float-32>> = <<number::float-32>>
    rounded
  end
end
