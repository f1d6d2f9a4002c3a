defmodule EMLXBumblebee.ServingTest do
  # Generation through Nx.Serving. The tests set the default backend of all processes, so no other test may run
  # concurrently.
  use ExUnit.Case, async: false

  import EMLXBumblebee.Compare

  alias EMLXBumblebee.Models

  @words for index <- 3..39, into: %{"[PAD]" => 0, "[EOS]" => 1, "[UNK]" => 2}, do: {"w#{index}", index}

  defp tokenizer do
    {:ok, model} = Tokenizers.Model.WordLevel.init(@words, unk_token: "[UNK]")
    {:ok, tokenizer} = Tokenizers.Tokenizer.init(model)
    tokenizer = Tokenizers.Tokenizer.set_pre_tokenizer(tokenizer, Tokenizers.PreTokenizer.whitespace())

    %Bumblebee.Text.PreTrainedTokenizer{
      native_tokenizer: tokenizer,
      type: :llama,
      special_tokens: %{pad: "[PAD]", eos: "[EOS]", unk: "[UNK]"}
    }
  end

  defp serving(info, compiler, opts) do
    config = Models.generation(%{type: :multinomial_sampling}, temperature: 2.0)
    Bumblebee.Text.generation(info, tokenizer(), config, [defn_options: options(compiler)] ++ opts)
  end

  defp on_emlx(info),
    do: %{EMLXBumblebee.rewrite(info) | params: %{info.params | data: on(info.params.data, EMLX.Backend)}}

  # Bumblebee allocates the cache on the default backend. For a stream, that is the default of a process of Nx.Serving.
  defp run_on_emlx(serving, prompts) do
    Nx.global_default_backend(EMLX.Backend)
    serving |> Nx.Serving.run(prompts) |> collected()
  after
    Nx.global_default_backend(Nx.BinaryBackend)
  end

  defp collected(results) when is_list(results), do: results
  defp collected(stream), do: Enum.to_list(stream)

  @prompts [%{text: "w5 w9 w12", seed: 1}, %{text: "w30 w4 w4 w7 w21", seed: 2}]

  test "a serving of a rewritten model returns the same text for a batch of its compiled shape" do
    info = Models.info(:mistral)
    opts = [compile: [batch_size: 3, sequence_length: 6]]
    expected = Nx.Serving.run(serving(info, Nx.Defn.Evaluator, opts), @prompts)
    assert [%{results: [%{text: "w" <> _, token_summary: %{padding: 3}}]}, _] = expected

    for compiler <- compilers(),
        do: assert(run_on_emlx(serving(on_emlx(info), compiler, opts), @prompts) == expected)
  end

  test "a serving of a rewritten model streams the same text" do
    info = Models.info(:llama, num_key_value_heads: 2)
    opts = [stream: true, stream_done: true]
    expected = serving(info, Nx.Defn.Evaluator, opts) |> Nx.Serving.run(hd(@prompts)) |> collected()
    assert length(expected) > 3

    for compiler <- compilers(),
        do: assert(run_on_emlx(serving(on_emlx(info), compiler, opts), hd(@prompts)) == expected)
  end
end
