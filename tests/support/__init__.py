"""What several tests share: strategies, stand-ins, small models, the mutants, the compiler."""
