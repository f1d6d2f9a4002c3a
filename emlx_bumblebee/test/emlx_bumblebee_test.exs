defmodule EMLXBumblebeeTest do
  use ExUnit.Case, async: true

  doctest EMLXBumblebee
end
