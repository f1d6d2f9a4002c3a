# Compiles the programs that script/demo runs without Bumblebee: minilm.emlx, Bumblebee's MiniLM rewritten by
# EMLXBumblebee, and minilm_composed.emlx, the original model. They contain no weights.
#
#   cd emlx_bumblebee && MIX_ENV=test mix run ../examples/minilm/compile.exs
Code.require_file("program.ex", __DIR__)

model = Bumblebee.build_model(MiniLM.Program.spec())

for {name, model} <- [minilm: EMLXBumblebee.rewrite(model), minilm_composed: model] do
  path = Path.join(__DIR__, "#{name}.emlx")
  program = MiniLM.Program.compile(model)
  EMLX.Program.save(program, path)
  IO.puts("#{name}: #{program.size} instructions, #{div(File.stat!(path).size, 1024)} KiB")
end
